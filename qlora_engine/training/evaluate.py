"""The loss on held-out rows, weighted by tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
from mlx import nn

from qlora_engine.training.batches import evaluation_batches, pad
from qlora_engine.training.data import Document
from qlora_engine.training.loss import token_loss
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
    model: nn.Module,
    documents: Sequence[Document],
    *,
    batch_size: int,
    batches: int,
    longest: int,
    seed: int,
    stop: StopRequest,
) -> Evaluation | None:
    """Evaluate rows without dropout; None if a stop was asked for midway.

    Args:
        batches: how many micro-batches, or -1 for all rows.
        longest: max_seq_length.
        seed: draws the rows when not all are taken.
    """
    loss, tokens, rows = 0.0, 0, 0
    model.eval()
    try:
        for chosen in evaluation_batches([len(d) for d in documents], batch_size, batches, seed):
            if stop.asked:
                return None
            padded, supervised = pad([documents[row] for row in chosen], longest)
            total, count = token_loss(model, mx.array(padded), mx.array(supervised))
            mx.eval(total, count)
            loss, tokens, rows = loss + float(total), tokens + int(count), rows + len(chosen)
    finally:
        model.train()
    return Evaluation(loss / tokens if tokens else math.nan, tokens, rows)
