"""Whether a run joins documents in rows: by the job, the model, its data, and the time that a wide row takes here."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from mlx import nn

from qlora_engine.job.preflight.batch import GRID, Grid
from qlora_engine.training.batches import Plan, Window
from qlora_engine.training.measured import Measured
from qlora_engine.training.packing import Packing, lay_out
from qlora_engine.training.segments import why_not_joined
from qlora_engine.training.step import TrainingStep
from qlora_engine.training.targets import Targets

LOOKED_AT = 64  # windows
WORTH = 0.02  # of the positions must be saved
NEVER = 1e9  # an attention width that no row comes near: only positions count
# Where nothing is measured. Two CPU cores, 135M parameters; the others are guesses on the side of more rows.
ATTENTION = {"cpu": 600.0, "metal": 1024.0, "cuda": 4096.0}
# Inputs of a row that several short documents may fill, however short they are. Where attention is one kernel, its
# memory does not grow with the square of the width; elsewhere no row is wider than the longest document.
FUSED_WIDTH = {"cpu": 0, "metal": 0, "cuda": 4096}
LONG_ENOUGH = 100  # micro-batches of a run that is worth measuring for
MEASURED = 4  # documents
ROUNDS = 2


@dataclass(frozen=True)
class Choice:
    """A packing, and how it came about; seconds are those that were measured."""

    packing: Packing
    reason: str
    saved: float
    seconds_alone: float | None = None
    seconds_joined: float | None = None

    def as_event(self) -> dict[str, Any]:
        """The fields of `packing.chosen`."""
        return {
            "joined": self.packing.joined,
            "why": self.reason,
            "saved": self.saved,
            "attention": self.packing.attention if self.packing.joined else None,
            "seconds_alone": self.seconds_alone,
            "seconds_joined": self.seconds_joined,
        }

    def as_json(self, asked: str) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"asked": asked, "joined": self.packing.joined, "attention": self.packing.attention}


def recorded(value: dict[str, Any] | None, asked: str, plan: Plan, backend: str) -> Packing | None:
    """The packing that an earlier process of the run has chosen; None if it has not, or the job asks for another."""
    if value is None or value["asked"] != asked:
        return None
    return _packing(plan, backend, joined=value["joined"], attention=value["attention"])


def widest_row(plan: Plan, backend: str) -> int:
    """Width that no row of a run exceeds, whether documents are joined or not."""
    longest = GRID[backend].least(plan.widest)
    return max(longest, min(FUSED_WIDTH[backend], plan.batch_size * longest))


def _packing(plan: Plan, backend: str, *, joined: bool, attention: float = NEVER) -> Packing:
    grid = GRID[backend]
    longest = grid.least(plan.widest)
    return Packing(joined, grid, attention, longest, widest_row(plan, backend) if joined else longest)


def choose(
    asked: Literal["auto", "on", "off"],
    plan: Plan,
    step: TrainingStep,
    model: nn.Module,
    *,
    model_type: str | None,
    vocabulary: int,
    backend: str,
    about: Mapping[str, Any],
    known: Measured,
) -> Choice:
    """How this run lays its documents out.

    Args:
        asked: the job's `packing`.
        step: fresh; what it measures is forgotten.
        vocabulary: tokens that the model knows.
        about: what times depend on.
        known: asked first, and told what is measured.
    """
    alone = _packing(plan, backend, joined=False)
    joined = _packing(plan, backend, joined=True)
    saved = round(_saved(plan, alone, joined), 4)
    if asked == "off":
        return Choice(alone, "the job says so", saved)
    if saved < WORTH:
        return Choice(alone, "joining documents would save too little", saved)
    if why_not := why_not_joined(model, model_type, vocabulary):
        return Choice(alone, f"the model cannot: {why_not}", saved)
    if asked == "on":
        return Choice(joined, "the job says so", saved)
    inputs = GRID[backend].width(int(np.median(first_inputs(plan))))  # so that like jobs ask the same
    count = min(MEASURED, joined.widest // inputs)
    if plan.steps < LONG_ENOUGH or count < 2:
        packing = _packing(plan, backend, joined=True, attention=ATTENTION[backend])
        return Choice(packing, "as on other machines, the run being short or its documents long", saved)
    question = {"what": "rows of documents", "inputs": inputs, "count": count, **about}
    alone_s, joined_s = known.answer(question) or _measure(step, inputs, count, vocabulary, joined.grid)
    known.note(question, (alone_s, joined_s))
    attention = attention_of(alone_s, joined_s, inputs, count)
    packing = _packing(plan, backend, joined=True, attention=attention)
    return Choice(packing, "as measured", saved, round(alone_s, 4), round(joined_s, 4))


def attention_of(alone: float, joined: float, inputs: int, count: int) -> float:
    """The width at which a row's attention takes as long as all else.

    A row of width w takes w × (1 + w / attention), so that the two times of as many positions tell it.

    Args:
        alone: seconds for `count` rows of so many inputs.
        joined: seconds for one row of all of them.
    """
    ratio = max(joined / alone, 1 + count * inputs / NEVER)
    return round(min(NEVER, max(1.0, inputs * (count - ratio)) / (ratio - 1)), 1)


def _saved(plan: Plan, alone: Packing, joined: Packing) -> float:
    """The share of the positions of the first windows that joining saves."""

    def positions(packing: Packing) -> int:
        total = 0
        for window in _first_windows(plan):
            for batch in lay_out(window, plan.lengths, packing, plan.batch_size):
                inputs = (sum(max(0, plan.lengths[document] - 1) for document in row) for row in batch.rows)
                total += len(batch.rows) * packing.width(max(inputs))
        return total

    return 1 - positions(joined) / positions(alone)


def _first_windows(plan: Plan) -> Iterator[Window]:
    return itertools.islice(plan.windows(epoch=0, index=0, step=0), LOOKED_AT)


def first_inputs(plan: Plan) -> list[int]:
    """Inputs of every document of the first windows."""
    windows = _first_windows(plan)
    return [max(1, plan.lengths[d] - 1) for window in windows for rows in window.micro_batches for d in rows]


def _measure(step: TrainingStep, inputs: int, count: int, vocabulary: int, grid: Grid) -> tuple[float, float]:
    """Seconds for some documents in rows of their own and in one row, each the best of some."""
    tokens = np.random.default_rng(0).integers(0, vocabulary, (count, inputs + 1)).astype(np.int32)
    alone = Targets.of(tokens, np.ones(tokens.shape, np.bool_), grid)
    numbers = np.repeat(np.arange(1, count + 1, dtype=np.int32), inputs)[None]
    joined = Targets(alone.inputs.reshape(1, -1), alone.rows, alone.tokens, alone.count, numbers, alone.filled)
    times: dict[int, list[float]] = {0: [], 1: []}
    training = step.model.training
    step.model.train()  # or the loss would keep all logits
    for _ in range(1 + ROUNDS):  # the first of each is not counted: it may compile
        for index, targets in enumerate((alone, joined)):
            started = time.perf_counter()
            step.micro_batch(targets, mx.random.key(0))
            times[index].append(time.perf_counter() - started)
            step.discard()
    step.model.train(training)
    return min(times[0][1:]), min(times[1][1:])
