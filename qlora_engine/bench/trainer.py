"""One run of one trainer: a process of its own, read until enough of it is measured, then ended."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO, Any

from qlora_engine.bench.result import Measurement, Report, Trainer, enough, speed, steady
from qlora_engine.job.errors import BenchFailed
from qlora_engine.job.text import plain

END_SECONDS = 30.0  # that the engine has to write its checkpoint after SIGTERM
GIGA = 1e9
# `ru_maxrss` is in bytes on macOS and in units of 1024 elsewhere.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024

Event = dict[str, Any]  # JSON


@dataclass(frozen=True)
class Effort:
    """How long each run is measured.

    Attributes:
        warm_up: seconds after the first report that are not counted.
        seconds: to be counted at least, and at least one report.
    """

    warm_up: float = 3.0
    seconds: float = 5.0


@dataclass
class Reading:
    """What a trainer's events have said so far."""

    reports: list[Report] = field(default_factory=list)
    peak_gb: float = 0.0
    machine: dict[str, Any] = field(default_factory=dict)
    problem: Event | None = None
    _before: Event | None = None

    def take(self, event: Event) -> None:
        """Read one event, or the error that a program says last."""
        if "what" in event and "remedy" in event:
            self.problem = event
        match event.get("event"):
            case "training.started":  # again after memory ran out: the process goes on in another way
                kept = ("backend", "device", "versions", "blas", "threads")
                self.machine = {key: event.get(key) for key in kept}
                self.reports.clear()
                self._before = None
            case "training.report":
                self.reports.append(report_of(event, self._before))
                self.peak_gb = max(self.peak_gb, float(event["peak_gb"]))
                self._before = event


def report_of(event: Event, before: Event | None) -> Report:
    """A report from a `training.report` event and the one before it.

    Its time is `seconds` where the trainer has a clock of its own, and otherwise all that passed between the two.
    """
    at = datetime.fromisoformat(event["ts"]).timestamp()
    if before is None:
        return Report(at, int(event["tokens"]), float(event.get("seconds", 0.0)))
    passed = at - datetime.fromisoformat(before["ts"]).timestamp()
    return Report(at, int(event["tokens"]) - int(before["tokens"]), float(event.get("seconds", passed)))


def measure(
    trainer: Trainer, command: Sequence[str], environment: Mapping[str, str], effort: Effort, *, lock: int
) -> tuple[Measurement, dict[str, Any]]:
    """Run a trainer until enough is measured; its speed and memory, and the machine as it found it.

    Args:
        command: writes events as JSON lines to standard output, and goes on until it is ended.
        environment: of the process, complete.
        lock: descriptor of the GPU lock, which the process keeps open: should this process be killed, the lock
            is held for as long as something trains.

    Raises:
        BenchFailed: it ended before enough was measured, with what it said; or its rows have no targets.
    """
    reading = Reading()
    with tempfile.TemporaryFile() as complaints, _running(command, environment, complaints, lock) as process:
        for event in _events(process):
            reading.take(event)
            if enough(reading.reports, warm_up=effort.warm_up, seconds=effort.seconds):
                break
        else:
            raise _failed(trainer, command, process.wait(), reading, complaints)
        peak = _end(process)
    targets, seconds = speed(reading.reports, effort.warm_up)
    if not targets:
        raise BenchFailed(
            "No row that was trained has anything to learn.",
            where=shlex.join(command),
            remedy="With `mask_prompt` only answers count: raise max_seq_length so that they are not cut.",
        )
    return Measurement(
        trainer=trainer,
        tokens_per_second=round(targets / seconds, 3),
        targets=targets,
        seconds=round(seconds, 3),
        reports=len(steady(reading.reports, effort.warm_up)),
        peak_gb=round(reading.peak_gb, 4),
        process_gb=round(peak / GIGA, 4),
    ), reading.machine


@contextmanager
def _running(
    command: Sequence[str], environment: Mapping[str, str], complaints: IO[bytes], lock: int
) -> Iterator[subprocess.Popen[str]]:
    """The process in a session of its own, so that Ctrl-C reaches the bench alone; gone at the end of the block."""
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.PIPE,  # its end tells the child that nobody measures it any more
        stdout=subprocess.PIPE,
        stderr=complaints,
        text=True,
        errors="replace",
        start_new_session=True,
        pass_fds=[lock],
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _events(process: subprocess.Popen[str]) -> Iterator[Event]:
    for line in process.stdout or ():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a library that printed something
        if isinstance(event, dict):
            yield event


def _end(process: subprocess.Popen[str]) -> int:
    """Ask a process to end, insist after a while; the most memory that it had resident, in bytes."""
    os.kill(process.pid, signal.SIGTERM)
    if not _closed(process, END_SECONDS):
        os.killpg(process.pid, signal.SIGKILL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * RSS_UNIT


def _closed(process: subprocess.Popen[str], seconds: float) -> bool:
    """Whether the process closes its output within a time, as one that ends does."""
    assert process.stdout is not None  # noqa: S101  # it was started with a pipe
    output, end = process.stdout.fileno(), time.monotonic() + seconds
    while select.select([output], [], [], max(0.0, end - time.monotonic()))[0]:
        if not os.read(output, 65536):
            return True
    return False


def _failed(
    trainer: Trainer, command: Sequence[str], code: int, reading: Reading, complaints: IO[bytes]
) -> BenchFailed:
    """Why a trainer ended by itself."""
    name = "The engine" if trainer == "engine" else "mlx_lm's trainer"
    if reading.problem is not None:
        said, where, remedy = (reading.problem.get(key) for key in ("what", "where", "remedy"))
        return BenchFailed(f"{name} failed: {said}", where=where, remedy=remedy)
    complaints.seek(0)
    lines = complaints.read()[-4000:].decode(errors="replace").strip().splitlines()
    ended = f"by signal {-code}" if code < 0 else f"with code {code}"
    return BenchFailed(
        f"{name} ended {ended} before it was measured{': ' + plain(lines[-1], 300) if lines else ''}.",
        where=shlex.join(command),
        remedy="Check that the job trains at all and fits into memory: `qlora validate` says what it needs.",
    )
