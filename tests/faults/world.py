"""A real daemon with its Valkey, worker and trainings, on small disks of their own, and what is known of its jobs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from qlora_engine.job.events import Event, parse_line
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from support import foreground, tiny
from support.ended import has_ended
from support.service import Daemon, short_home, wait_until

ITERS, SAVE_EVERY = 300, 10
SPARE = 100  # steps that a job must have left for a fault to strike it
DISKS = {"jobs": 128, "runs": 64, "logs": 64, "state": 32}  # MB
SETTINGS = {"QLORAD_STALL_SECONDS": "10", "QLORAD_STOP_SECONDS": "10"}


@dataclass
class World:
    """What a fault strikes."""

    daemon: Daemon
    draw: random.Random
    model: Path
    data: Path
    mounted: bool
    reference: str = ""  # digest of the adapters of a run without faults
    expected: set[str] = field(default_factory=set)  # names of the jobs that were dropped
    disturbed: bool = False  # a disk was full: lines of events and metrics may be missing
    dropped: int = 0

    # Jobs

    def keys(self, **more: Any) -> dict[str, Any]:
        """The job whose result is known."""
        return tiny.job(
            self.model, self.data, iters=ITERS, save_every=SAVE_EVERY, steps_per_eval=100, steps_per_report=50,
            lora_parameters={"rank": 4, "scale": 8.0, "dropout": 0.1}, **more,
        )  # fmt: skip

    def drop(self, **more: Any) -> str:
        """Drop one more such job; its name."""
        self.dropped += 1
        name = f"job{self.dropped}"
        self.daemon.drop(f"{name}.json", json.dumps(self.keys(name=name, **more)))
        self.expected.add(name)
        return name

    def records(self) -> list[JobRecord]:
        """Every job's record as it is on disk."""
        return self.daemon.jobs()

    def unfinished(self) -> list[JobRecord]:
        return [record for record in self.records() if not record.is_final]

    def last_words(self) -> str:
        """What a person needs who looks into a problem: unfinished jobs, and the end of the service log."""
        jobs = [f"  {r.id}: {r.state} {r.reason!r}, attempt {r.attempt}, step {r.step}" for r in self.unfinished()]
        log = self.daemon.home.service_log
        return "\n".join([*jobs, *(f"  {line:.300}" for line in log.read_text(errors="replace").splitlines()[-12:])])

    def steps(self) -> dict[str, int]:
        """How many lines of metrics each job has."""
        return {path.parent.name: _lines(path) for path in self.daemon.home.runs.glob("[!.]*/metrics.jsonl")}

    def make_it_train(self) -> JobRecord:
        """Wait until a job trains that has a new checkpoint and enough steps left."""
        self.daemon_is_up()
        before = {record.id: record.checkpoint_step for record in self.records()}

        def ready() -> JobRecord | None:
            records = self.records()
            waiting = {record.name for record in records if not record.is_final} | (
                self.expected - {record.name for record in records}
            )
            if not waiting:
                self.drop()
            for record in records:
                fresh = record.checkpoint_step > before.get(record.id, 0)
                if record.state is State.RUNNING and fresh and record.step:
                    # What the daemon knows may be seconds old, if it was struck: the training may have ended.
                    trained = self._newest(record.id).get("step", 0)
                    if record.steps - max(record.checkpoint_step, trained) >= SPARE:
                        return record
                    if len(waiting) < 2:
                        self.drop()
            return None

        found: list[JobRecord] = []
        wait_until("a job trains and has a new checkpoint", lambda: found.extend(filter(None, [ready()])) or found, 90)
        return found[0]

    def goes_on(self, before: dict[str, int], seconds: float, *, after: JobRecord | None) -> None:
        """Wait until a job has trained a step more than `before` says, or all are done.

        Args:
            before: lines of metrics by job.
            seconds: at most.
            after: of this job, only a step of a later attempt counts.
        """

        def more() -> bool:
            grown = [job for job, count in self.steps().items() if count > before.get(job, 0)]
            return any(
                after is None or job != after.id or self._newest(job).get("attempt", 0) > after.attempt for job in grown
            )

        wait_until("training goes on", lambda: more() or not self.unfinished(), seconds)

    def _newest(self, job: str) -> Event:
        """The newest whole line of a job's metrics; empty when there is none."""
        try:
            lines = self.daemon.home.run(job).metrics.read_bytes().splitlines()
        except FileNotFoundError:
            return {}
        return next(filter(None, (parse_line(line) for line in reversed(lines[-3:]))), {})

    # Processes

    def daemon_is_up(self) -> None:
        """Start the daemon if it does not run."""
        if self.daemon._process is None or self.daemon.process.poll() is not None:
            self.daemon.start(ready=False)

    def restart(self) -> None:
        """Start the daemon, whose end has been waited for."""
        self.daemon.process.wait(60)
        self.daemon.start(ready=False)

    def process(self, kind: str) -> psutil.Process | None:
        """A living process of the home: daemon, worker, valkey or training."""
        if kind == "daemon":
            return psutil.Process(self.daemon.process.pid) if self.daemon.process.poll() is None else None
        sign = {"worker": "qlora_worker", "valkey": "--unixsocket", "training": "qlora_worker.task"}[kind]
        for process in self.daemon.processes():
            with contextlib.suppress(psutil.Error):
                if sign in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    return process
        return None

    def wait_for_process(self, kind: str, seconds: float = 30.0) -> psutil.Process:
        """A living process of the home, as soon as there is one."""
        wait_until(f"there is a {kind}", lambda: self.process(kind) is not None, seconds)
        process = self.process(kind)
        return process if process is not None else self.wait_for_process(kind, seconds)

    def send(self, kind: str, number: signal.Signals) -> None:
        """Send a signal, unless the process is just gone."""
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            self.wait_for_process(kind).send_signal(number)

    def kill_everything(self) -> None:
        """A power cut, in any order."""
        processes = self.daemon.processes()
        self.draw.shuffle(processes)
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.daemon.process.wait()
        wait_until("all are gone", lambda: not [p for p in self.daemon.processes() if not has_ended(p)])

    def pause(self, longest: float) -> None:
        """Let a random moment pass."""
        time.sleep(self.draw.uniform(0, longest))  # the moment is what is drawn


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


@contextlib.contextmanager
def world(seed: int) -> Iterator[World]:
    """A world with a running daemon; nothing of it is left afterwards."""
    with short_home() as home, contextlib.ExitStack() as stack:
        mounted = all(_mount(stack, home / name, megabytes) for name, megabytes in DISKS.items())
        material = Path(stack.enter_context(short_home()))
        daemon = Daemon(home, module="faults.clocked_daemon", environment=SETTINGS)
        model, data = tiny.make_model(material / "m", hidden=64), tiny.make_data(material / "d", train=40, valid=4)
        made = World(daemon, random.Random(seed), model, data, mounted)
        job_file = tiny.write_job(material / "job.json", made.keys())
        made.reference = foreground.digest(foreground.train(job_file, material / "reference", QLORAD_CPU_BLAS="off"))
        daemon.home.make()
        stack.callback(daemon.end)
        daemon.start()
        yield made


def _mount(stack: contextlib.ExitStack, folder: Path, megabytes: int) -> bool:
    """Give a folder a small disk of its own, where the system lets us."""
    folder.mkdir(mode=0o700)
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", str(folder)],
        capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        stack.callback(subprocess.run, ["umount", "-l", str(folder)], capture_output=True, check=False)
    return done.returncode == 0
