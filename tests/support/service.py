"""A real daemon for tests: in a home with a short path, with its own GPU lock, and with nothing left afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

from qlora_engine.job.events import Event, parse_line
from qlora_engine.job.folder import Home
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from qlora_worker.requests import Requests
from qlora_worker.settings import Settings

ROOT = Path(__file__).parents[2]
STAND_IN = "support.stand_in_daemon"
REAL = "qlora_daemon"


class NotInTime(AssertionError):
    """Something that a test waited for did not happen."""


def wait_until(what: str, look: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until `look` gives something true."""
    end = time.monotonic() + seconds
    while not look():
        if time.monotonic() > end:
            raise NotInTime(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)


class Daemon:
    """One home and the daemon that serves it, which may be started and ended many times.

    Args:
        home: QLORAD_HOME.
        module: what `python -m` runs.
        environment: further variables.
    """

    def __init__(self, home: Path, *, module: str = STAND_IN, environment: Mapping[str, str] | None = None) -> None:
        self.home = Home(home)
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("daemon", "worker", "clients", ".", "tests")),
            "QLORAD_HOME": str(home),
            "QLORAD_GPU_LOCK": str(home / "gpu.lock"),
            "QLORAD_REPORT": "0",
            "QLORAD_DISK_RESERVE_GB": "0",  # how full the disk of a test machine is must not matter
            "QLORAD_SETTLE_SECONDS": "0.3",
            "QLORAD_CPU_BLAS": "off",
            "HF_HUB_OFFLINE": "1",
            **(environment or {}),
        }

    # Starting and ending

    def start(self, *, ready: bool = True) -> subprocess.Popen[bytes]:
        """Start it; with `ready`, wait until its worker listens."""
        before = len(self.events("library.log"))
        with (self.home.path / "stderr.txt").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self._module],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        if ready:
            wait_until("the worker listens", lambda: self._listens(before))
        return self._process

    def _listens(self, before: int) -> bool:
        assert self.process.poll() is None, self.errors()
        return any("Listening" in event["message"] for event in self.events("library.log")[before:])

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the daemon was not started"
        return self._process

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 30.0) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def end(self) -> None:
        """End whatever is left, hard."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def processes(self) -> list[psutil.Process]:
        """Every process that belongs to this home."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("QLORAD_HOME") == str(self.home.path) and process.pid != os.getpid():
                    found.append(process)
        return found

    def child(self, name: str) -> psutil.Process:
        """The newest child of the daemon with this name."""
        return psutil.Process(self.events("child.started", child=name)[-1]["pid"])

    def training(self, job_id: str) -> psutil.Process:
        """The newest training process of a job."""
        return psutil.Process(self.events("training.started", job=job_id)[-1]["pid"])

    # Reading

    def errors(self) -> str:
        path = self.home.path / "stderr.txt"
        return path.read_text() if path.exists() else ""

    def events(self, name: str | None = None, **fields: object) -> list[Event]:
        """The service log, or those of its events that match."""
        path = self.home.service_log
        lines = path.read_bytes().splitlines() if path.exists() else []
        found = [event for event in map(parse_line, lines) if event is not None]
        return [
            event for event in found
            if name in (None, event["event"]) and all(event.get(key) == value for key, value in fields.items())
        ]  # fmt: skip

    def wait_for(self, name: str, seconds: float = 20.0, **fields: object) -> Event:
        """The first such event."""
        wait_until(f"{name} {fields}", lambda: self.events(name, **fields), seconds)
        return self.events(name, **fields)[0]

    def jobs(self) -> list[JobRecord]:
        """Every job, oldest first."""
        return [JobRecord.load(path) for path in sorted(self.home.runs.glob("[!.]*/state.json"))]

    def job(self, name: str) -> JobRecord:
        """The one job with this name."""
        found = [job for job in self.jobs() if job.name == name]
        assert len(found) == 1, f"{len(found)} jobs are called {name}"
        return found[0]

    def wait_for_state(self, name: str, *states: State, seconds: float = 25.0) -> JobRecord:
        """Wait until the job with this name is in one of the states."""
        wait_until(
            f"{name} is {states}",
            lambda: any(job.name == name and job.state in states for job in self.jobs()),
            seconds,
        )
        return self.job(name)

    # Giving it work

    def text(self, **keys: object) -> str:
        """A valid job file, as JSON, which is YAML, too."""
        return json.dumps({"model": str(self.model()), "data": str(self.data()), "iters": 5, **keys})

    def model(self) -> Path:
        """Enough of a model for the examiner; the stand-in reads none."""
        folder = self.home.path / "m"
        if not folder.exists():
            folder.mkdir()
            (folder / "config.json").write_text('{"model_type": "llama"}')
            (folder / "model.safetensors").write_bytes(b"")
        return folder

    def data(self) -> Path:
        """Training rows."""
        folder = self.home.path / "d"
        if not folder.exists():
            write_rows(folder)
        return folder

    def drop(self, name: str, text: str) -> Path:
        """Drop a file under its final name at once."""
        hidden = self.home.jobs / f".{name}"
        hidden.write_text(text)
        return hidden.rename(self.home.jobs / name)

    def drop_folder(self, name: str, /, **keys: object) -> Path:
        """Drop a folder with its own data."""
        hidden = self.home.jobs / f".{name}"
        write_rows(hidden / "data")
        (hidden / "job.yaml").write_text(json.dumps({"model": str(self.model()), "data": "data", "iters": 5, **keys}))
        return hidden.rename(self.home.jobs / name)

    def requests(self) -> Requests:
        """A client's side of the request stream."""
        return Requests.of(self.settings())

    def settings(self) -> Settings:
        return Settings(home=self.home.path, gpu_lock=self.home.path / "gpu.lock")


def write_rows(folder: Path, rows: int = 4) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text('{"prompt": "1 + 1", "completion": "2"}\n' * rows)


@contextlib.contextmanager
def short_home() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's name."""
    folder = Path(tempfile.mkdtemp(prefix="q", dir="/tmp")).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def daemon_in(home: Path, **options: object) -> Iterator[Daemon]:
    """A daemon, not started, of which nothing may be left in the end."""
    daemon = Daemon(home, **options)  # type: ignore[arg-type]
    daemon.home.make()
    try:
        yield daemon
        if daemon._process is not None and daemon._process.poll() is None:
            assert daemon.stop() == 0, daemon.errors()
        wait_until("nothing of the daemon is left", lambda: not daemon.processes(), 10.0)
        assert not daemon.events("internal.error"), daemon.events("internal.error")
    finally:
        daemon.end()
