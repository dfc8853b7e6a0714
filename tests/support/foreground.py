"""The foreground engine as a real process, its events as they come, and what a run left on disk."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

TIME_LIMIT = 90


def environment(folder: Path, **more: str) -> dict[str, str]:
    """That of this process, with a home and a GPU lock in `folder`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("QLORAD_")}
    return {
        **kept,
        "QLORAD_HOME": str(folder / "home"),
        "QLORAD_GPU_LOCK": str(folder / "gpu.lock"),
        "PYTHONPATH": os.pathsep.join(str(Path(p).absolute()) for p in sys.path if p),
        "HF_HUB_OFFLINE": "1",
        "QLORAD_REPORT": "false",  # seconds of plotting, which have tests of their own
        **more,
    }


class Engine:
    """`python -m qlora_engine JOB --run RUN --json`, started; at the end of the `with` block it runs no more."""

    def __init__(self, job_file: Path, run: Path, **more: str) -> None:
        self.run = run
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qlora_engine", str(job_file), "--run", str(run), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(run.parent, **more),
        )

    def events(self) -> Iterator[dict[str, Any]]:
        """Every event in the moment when it happens."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield json.loads(line)

    def wait_for(self, name: str, **fields: object) -> dict[str, Any]:
        """The next such event."""
        for event in self.events():
            if event["event"] == name and all(event.get(key) == value for key, value in fields.items()):
                return event
        raise AssertionError(f"{name} {fields} never came: {self.process.stderr and self.process.stderr.read()}")

    def end(self) -> int:
        """Wait for its end; the exit code."""
        _, errors = self.process.communicate(timeout=TIME_LIMIT)
        assert "Traceback" not in errors, errors
        return self.process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def train(job_file: Path, run: Path, *, limit: float = TIME_LIMIT, **more: str) -> Path:
    """Train to the end, within some seconds; the run folder."""
    with Engine(job_file, run, **more) as engine:
        output, errors = engine.process.communicate(timeout=limit)
        assert engine.process.returncode == 0, output[-2000:] + errors
    return run


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON lines file; a kill may have cut the last one."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def events(run: Path, name: str) -> list[dict[str, Any]]:
    """A run's events of one kind."""
    return [event for event in lines(run / "events.jsonl") if event["event"] == name]


def losses(run: Path) -> dict[int, float]:
    """The loss of every step; a step that was done twice must have given the same twice."""
    found: dict[int, float] = {}
    for event in lines(run / "metrics.jsonl"):
        assert found.setdefault(event["step"], event["loss"]) == event["loss"], f"step {event['step']} differs"
    return found


def validations(run: Path) -> dict[int, float]:
    """The loss of every validation; one that was done twice must have given the same twice."""
    found: dict[int, float] = {}
    for event in events(run, "validation"):
        assert found.setdefault(event["step"], event["loss"]) == event["loss"], f"validation {event['step']} differs"
    return found


def digest(run: Path) -> str:
    """SHA-256 of the adapters."""
    return hashlib.sha256((run / "adapters" / "adapters.safetensors").read_bytes()).hexdigest()
