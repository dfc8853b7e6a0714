"""`report_to`: a run's numbers, passed on to wandb, swanlab, tensorboard or trackio while it trains.

The services' libraries start threads, print, ask for passwords and wait for the network at exit, so they live in a
process of their own. It is written to without waiting, and killed when it does not end in time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO

from qlora_engine.job.events import Event, EventLog
from qlora_engine.job.folder import RunFolder, slug
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.unforeseen import said_by
from qlora_engine.training.services import Identity

CLOSE_SECONDS = 15.0

# Ours to mlx_lm's name, so that runs of both can be compared.
REPORTED = {
    "loss": "train_loss",
    "learning_rate": "learning_rate",
    "steps_per_second": "iterations_per_second",
    "tokens_per_second": "tokens_per_second",
    "tokens": "trained_tokens",
    "peak_gb": "peak_memory",
    "gradient_norm": "gradient_norm",
}


@dataclass(frozen=True)
class Message:
    """Numbers of one step; None and what is not finite are left out."""

    step: int
    values: Mapping[str, float]


class Reporters:
    """Passes events on to every service of `report_to`; does nothing when the job names none.

    A service that fails, or that does not keep up, is left out after one `report.failed` event; training neither
    waits for it nor fails with it.

    Args:
        log: receives `report.failed`.
    """

    def __init__(self, spec: JobSpec, run: RunFolder, log: EventLog) -> None:
        self._log = log
        self._heard = b""
        self._open = set(spec.reporters)
        self._process = self._start(spec, run) if self._open else None

    def sink(self, event: Event) -> None:
        """A sink for the log of a run: takes what the services are to know, at once."""
        message = message_of(event)
        if self._process is None or not self._open or message is None or not message.values:
            return
        try:
            os.write(_pipe(self._process.stdin).fileno(), _line(asdict(message)))
        except BlockingIOError:
            self._give_up("it does not keep up with training")
        except BrokenPipeError:
            self._hear()
            self._give_up("its process has ended; see report_to.log")
        self._hear()

    def close(self, within: float = CLOSE_SECONDS) -> None:
        """Let the services take what they still have to, for so many seconds at most."""
        if self._process is None:
            return
        with suppress(BrokenPipeError):
            _pipe(self._process.stdin).close()
        try:
            self._process.wait(within if self._open else 0.0)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._hear()
        self._give_up("it did not take the last reports in time")
        _pipe(self._process.stdout).close()
        self._process = None

    def _start(self, spec: JobSpec, run: RunFolder) -> subprocess.Popen[bytes] | None:
        identity = Identity(
            run=run_id(run),
            project=spec.project_name,
            folder=str(run.path),
            config=spec.model_dump(mode="json", exclude_none=True),
        )
        try:
            with (run.path / "report_to.log").open("ab") as output:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "qlora_engine.training.reporter_process"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    bufsize=0,
                    start_new_session=True,  # Ctrl-C is for training, and no terminal can be asked for a password
                )
            _write_all(process.stdin, _line({"services": sorted(self._open), "identity": asdict(identity)}))
        except OSError as error:
            self._give_up(f"its process cannot be started: {said_by(error)}")
            return None
        for pipe in (process.stdin, process.stdout):
            os.set_blocking(_pipe(pipe).fileno(), False)
        return process

    def _hear(self) -> None:
        """Pass on what the process has said so far: which services failed, and which are done."""
        while self._process is not None and (piece := _pipe(self._process.stdout).read(4096)):
            self._heard += piece
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            said = json.loads(line)
            if said["failed"] is not None and said["service"] in self._open:
                self._log.emit("report.failed", to=said["service"], what=said["failed"])
            self._open.discard(said["service"])

    def _give_up(self, why: str) -> None:
        for name in sorted(self._open):
            self._log.emit("report.failed", to=name, what=why)
        self._open.clear()


def run_id(run: RunFolder) -> str:
    """What the services know the run by: the same when it is resumed, and no other folder has it."""
    return f"{slug(run.id)}-{hashlib.sha256(os.fsencode(run.path.absolute())).hexdigest()[:8]}"


def message_of(event: Event) -> Message | None:
    """What the services are told of an event; None for nothing."""
    match event["event"]:
        case "training.report":
            values = {theirs: event[ours] for ours, theirs in REPORTED.items()}
        case "validation":
            split = "val" if event["split"] == "valid" else event["split"]
            values = {f"{split}_loss": event["loss"], f"{split}_time": event["seconds"]}
        case "training.done":
            values = {"val_loss_before": event["loss_before"], "val_loss_after": event["loss_after"]}
        case _:
            return None
    kept = {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
    return Message(event["step"], kept)


def _line(value: object) -> bytes:
    # The numbers of a step are shorter than PIPE_BUF, so a pipe without room for a line takes none of it.
    return json.dumps(value).encode() + b"\n"


def _write_all(pipe: IO[bytes] | None, content: bytes) -> None:
    """Write before the pipe is made not to wait; a process that has ended already is noticed later."""
    with suppress(BrokenPipeError):
        while content:
            content = content[os.write(_pipe(pipe).fileno(), content) :]


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise AssertionError("the process was started with pipes")
    return pipe
