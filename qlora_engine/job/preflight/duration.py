"""How long a job will take: from an earlier run that trained in the same way, or else from its arithmetic."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_engine.job.events import parse_line
from qlora_engine.job.folder import Home, RunFolder
from qlora_engine.job.preflight.batch import Batch
from qlora_engine.job.preflight.memory import trained_layers
from qlora_engine.job.preflight.shape import ModelShape
from qlora_engine.job.record import utc_now
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.text import duration

LOOKED_AT = 100  # newest runs
# Keys that decide how fast a micro-batch is trained.
SPEED_KEYS = (
    "fine_tune_type", "num_layers", "batch_size", "max_seq_length", "grad_checkpoint", "mask_prompt", "lora_parameters",
)  # fmt: skip
# A step reaches this share of what a plain product of its shapes does; the rest is attention, small operations and
# the optimizer.
EFFICIENCY = 0.6


@dataclass(frozen=True)
class Work:
    """How much there is to do.

    Attributes:
        steps: micro-batches.
        positions: inputs of all micro-batches, padding included.
        targets: tokens that are learned, in all micro-batches.
        validated: targets of all validations together.
    """

    steps: int
    positions: float
    targets: float
    validated: float


@dataclass(frozen=True)
class Speed:
    """What an earlier run reached; `age` in seconds."""

    targets_per_second: float
    validated_per_second: float | None
    age: float

    def seconds(self, work: Work) -> float:
        """Of a job with this work."""
        validating = work.validated / (self.validated_per_second or 3 * self.targets_per_second)
        return work.targets / self.targets_per_second + validating

    @property
    def source(self) -> str:
        """Where it comes from, for a person."""
        return f"from a run {duration(self.age)} ago"


def steps_of(spec: JobSpec, rows: int) -> int:
    """Micro-batches of a run over so many training rows."""
    if spec.epochs is None:
        return spec.iters
    return max(1, math.ceil(round(spec.epochs * math.ceil(rows / spec.batch_size), 6)))


def speed_of_earlier(job: ResolvedJob, home: Home, backend: str) -> Speed | None:
    """The speed of the newest run that trained the same model in the same way on the same backend."""
    for run in _newest(home):
        try:
            spec, runtime = json.loads(run.spec.read_bytes()), json.loads(run.runtime.read_bytes())
        except (OSError, ValueError):
            continue  # it never trained, or is of another format
        if runtime.get("backend") == backend and _alike(job, spec) and (speed := _speed(run)):
            return speed
    return None


def _newest(home: Home) -> Iterator[RunFolder]:
    try:
        names = sorted((entry.name for entry in home.runs.iterdir()), reverse=True)
    except FileNotFoundError:
        return
    yield from (home.run(name) for name in names[:LOOKED_AT])


def _alike(job: ResolvedJob, other: dict[str, Any]) -> bool:
    mine, theirs = job.model_dump(mode="json"), other
    if mine["model_path"] != theirs.get("model_path"):
        return False
    spec = theirs.get("spec", {})
    return all(mine["spec"][key] == spec.get(key) for key in SPEED_KEYS)


def _speed(run: RunFolder) -> Speed | None:
    """The median of the reports, which the first steps and a busy machine do not spoil."""
    reached: list[float] = []
    validated: list[float] = []
    for event in _events(run.events):
        rate = event.get("tokens_per_second")
        if event["event"] == "training.report" and isinstance(rate, int | float) and rate > 0:
            reached.append(rate)
        if event["event"] == "validation" and event.get("seconds") and event.get("tokens"):
            validated.append(event["tokens"] / event["seconds"])
    if not reached:
        return None
    age = max(0.0, utc_now().timestamp() - run.events.stat().st_mtime)
    return Speed(statistics.median(reached), statistics.median(validated) if validated else None, age)


def _events(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    yield from (event for event in map(parse_line, lines) if event is not None)


def operations(spec: JobSpec, shape: ModelShape, work: Work, batch: Batch) -> float:
    """Floating-point operations of a job.

    A product with a matrix of n numbers takes 2 n a position. Frozen matrices need the forward product and, in the
    trained layers, that for the gradient of their input; trained ones a third; recomputation does the forward one
    again.
    """
    trained = trained_layers(spec, shape)
    used = sum(linear.inputs * linear.outputs * linear.used for linear in shape.linears)
    used += 2 * shape.heads * shape.head * batch.width  # scores, and their product with the values
    passes = shape.layers + trained * (1 + (spec.fine_tune_type == "full") + batch.recompute)
    head = shape.vocabulary * shape.hidden
    training = 2 * used * passes * work.positions + 2 * head * 2 * work.targets
    share = work.validated / max(1.0, work.targets)
    return training + share * (2 * used * shape.layers * work.positions + 2 * head * work.targets)
