"""What the engine adds to its training step: batches, events, checkpoints. One line of JSON.

    python benchmarks/overhead.py job.yaml

Trains the job through the engine in this process and times every call of the step: a batch and an update, from being
begun to when their numbers are there. What the wall clock shows beyond their sum, from the end of the first
optimizer steps to the end of the last, is overhead; so is what updates take longer, in the median, while a checkpoint
is written beside them (`slowed`). Set `val_batches: 0`, or validation is counted as overhead.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from qlora_engine import launch
from qlora_engine.job.events import EventLog, file_sink
from qlora_engine.job.examine import examine
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.settings import EngineSettings

WARM_UP = 3  # optimizer steps


class Stopwatch:
    """Adds up the time inside the step, and knows when the last update ended."""

    def __init__(self) -> None:
        self.inside: dict[str, float] = {}
        self.updates = 0
        self.started = self.ended = 0.0
        self.ends: list[float] = []  # of updates, by the clock of events

    def timed(self, name: str, method: Callable[..., Any], *, ends_window: bool) -> Callable[..., Any]:
        """The method, timed under a name."""

        def wrapped(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = method(*arguments)
            self.ended = time.perf_counter()
            self.inside[name] = self.inside.get(name, 0.0) + self.ended - started
            if ends_window:
                self.updates += 1
                self.ends.append(time.time())
            if ends_window and self.updates == WARM_UP:
                self.started, self.inside = self.ended, {}
            return result

        return wrapped


def measure(job_file: Path) -> dict[str, Any]:
    """Train and compare."""
    from qlora_engine.training.results import StartedMicroBatch, StartedUpdate  # noqa: PLC0415
    from qlora_engine.training.run import train  # noqa: PLC0415  # after the environment is settled
    from qlora_engine.training.step import TrainingStep  # noqa: PLC0415
    from qlora_engine.training.stop import StopRequest  # noqa: PLC0415

    watch = Stopwatch()
    parts: list[tuple[Any, str]] = [
        (TrainingStep, "start"), (StartedMicroBatch, "result"),
        (TrainingStep, "start_update"), (StartedUpdate, "result"),
    ]  # fmt: skip
    for kind, name in parts:
        said = f"{kind.__name__}.{name}"
        setattr(kind, name, watch.timed(said, getattr(kind, name), ends_window=kind is StartedUpdate))
    job = _examined(job_file)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        job.store(run.spec)
        log = EventLog([file_sink(run.events)], job="overhead")
        train(job, run, attempt=0, log=log, metrics=EventLog([file_sink(run.metrics)]), stop=StopRequest())
        events = [json.loads(line) for line in run.events.read_text().splitlines()]
    saved = [event for event in events if event["event"] == "checkpoint.saved"]
    ended = [datetime.fromisoformat(event["ts"]).timestamp() for event in saved]
    written = [(end - event["seconds"], end) for end, event in zip(ended, saved, strict=True)]
    quiet, beside = _apart(watch.ends[WARM_UP:], written)
    wall, inside = watch.ended - watch.started, sum(watch.inside.values())
    slowed = (1 - median(quiet) / median(beside)) * sum(beside) / wall if beside and quiet else 0.0
    return {
        "updates": watch.updates - WARM_UP,
        "seconds": round(wall, 3),
        "inside": round(inside, 3),
        "overhead": round(1 - inside / wall, 5),
        "seconds_an_update": round(wall / (watch.updates - WARM_UP), 5),
        "slowed": round(slowed, 5),
        "median_seconds": round(median(quiet), 5) if quiet else None,
        "median_seconds_beside_saving": round(median(beside), 5) if beside else None,
        "parts": {name: round(seconds / (watch.updates - WARM_UP), 5) for name, seconds in watch.inside.items()},
        "checkpoints": len(saved),
        "saving": round(sum(event["seconds"] for event in saved), 3),
    }


def _examined(job_file: Path) -> ResolvedJob:
    return examine(job_file, home=EngineSettings.read().folders.path, base=job_file.absolute().parent)


def _apart(ends: Sequence[float], written: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Seconds between updates: of those while nothing was written, and of the others."""
    quiet, beside = list[float](), list[float]()
    for before, after in itertools.pairwise(ends):
        busy = any(start < after and before < end for start, end in written)
        (beside if busy else quiet).append(after - before)
    return quiet, beside


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    arguments = parser.parse_args()
    wanted = launch.environment("auto", None, _examined(arguments.job))
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})  # noqa: S606
    print(json.dumps(measure(arguments.job)))
