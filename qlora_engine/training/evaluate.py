"""The loss on held-out rows, weighted by tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qlora_engine.job.preflight.batch import Grid
from qlora_engine.training.batches import evaluation_batches
from qlora_engine.training.data import Document
from qlora_engine.training.documents import lengths_of
from qlora_engine.training.packing import Packing
from qlora_engine.training.step import TrainingStep
from qlora_engine.training.stop import StopRequest


@dataclass(frozen=True)
class Evaluation:
    """The loss over a set of rows.

    Attributes:
        loss: mean over targets, nats; NaN without a target.
        tokens: targets.
        rows: evaluated.
    """

    loss: float
    tokens: int
    rows: int

    @property
    def perplexity(self) -> float:
        """exp(loss); infinity when that is too large for a float."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


def evaluate(
    step: TrainingStep,
    documents: Sequence[Document],
    *,
    rows: int,
    longest: int,
    grid: Grid,
    at_once: int,
    seed: int,
    stop: StopRequest,
    beat: Callable[[], None],
) -> Evaluation | None:
    """Evaluate rows under the step's current weights, without dropout; None if a stop was asked for midway.

    Args:
        rows: how many, or -1 for all of them.
        longest: tokens that no row exceeds.
        grid: the widths that rows may have.
        at_once: rows of one computation.
        seed: draws the rows when not all are taken.
        beat: called after each computation.
    """
    loss, tokens, evaluated = 0.0, 0, 0
    widest = grid.least(max(1, longest - 1))
    alone = Packing(joined=False, grid=grid, attention=math.inf, longest=widest, widest=widest)
    model = step.sync_model()
    model.eval()
    try:
        for chosen in evaluation_batches(lengths_of(documents), at_once, rows, seed):
            if stop.asked:
                return None
            targets = alone.targets(documents, tuple((row,) for row in chosen))
            loss, tokens, evaluated = loss + step.loss(targets), tokens + targets.count, evaluated + len(chosen)
            beat()
    finally:
        model.train()
    return Evaluation(loss / tokens if tokens else math.nan, tokens, evaluated)
