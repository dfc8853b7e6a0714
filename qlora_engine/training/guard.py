"""The guard's memory: which micro-batches were dropped, and when training must go back to a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

MAX_DROPPED = 5  # micro-batches in a row
MAX_ROLLBACKS = 2
RATE_FACTOR = 0.5  # of the learning rate, at each rollback


@dataclass(frozen=True)
class Guard:
    """What the guard knows. Part of a run's progress, so that a resumed run decides alike.

    Attributes:
        dropped: the micro-batches dropped in a row, by their step (from 0).
        last_good: micro-batches done when the last one was accepted.
        skipped: micro-batches that are passed over since a rollback, by step.
        rollbacks: so far.
        rate_factor: what the learning rate is multiplied by.
        target: step of the checkpoint that the last rollback went to.
    """

    dropped: tuple[int, ...] = ()
    last_good: int = 0
    skipped: tuple[int, ...] = ()
    rollbacks: int = 0
    rate_factor: float = 1.0
    target: int | None = None

    @property
    def tripped(self) -> bool:
        """So many micro-batches were dropped in a row that their rows are not to blame alone."""
        return len(self.dropped) >= MAX_DROPPED

    @property
    def gave_up(self) -> bool:
        """It has tripped once more than it may."""
        return self.tripped and self.rollbacks >= MAX_ROLLBACKS

    def accepted(self, end: int) -> Self:
        """After a good micro-batch, with so many done."""
        return replace(self, dropped=(), last_good=end)

    def refused(self, steps: Sequence[int]) -> Self:
        """After micro-batches that were dropped."""
        return replace(self, dropped=(*self.dropped, *steps))

    def target_of(self, anchors: Sequence[int]) -> int:
        """The checkpoint to go back to: the newest from which a micro-batch was good after it was made.

        One that was written just before the numbers broke may hold what broke them. And a checkpoint that did not
        help the last time will not help again, so the one before it is taken, if there is one.

        Args:
            anchors: steps of the checkpoints made by count, which a stop does not shift, in order.
        """
        proven = [anchor for anchor in anchors if anchor < self.last_good] or [min(anchors, default=0)]
        if len(proven) > 1 and proven[-1] == self.target:
            proven.pop()
        return proven[-1]

    def rolled_back(self, before: Guard, target: int) -> Guard:
        """At the checkpoint `target`, which was saved with this guard; `before` is the guard that tripped."""
        return replace(
            self,
            dropped=(),
            skipped=(*before.skipped, *before.dropped),
            rollbacks=before.rollbacks + 1,
            rate_factor=before.rate_factor * RATE_FACTOR,
            target=target,
        )


def place_of(loss: float, count: int, max_loss: float) -> str:
    """Where a dropped micro-batch went wrong: its summed loss, or else its gradient."""
    return "gradient" if math.isfinite(loss) and loss <= max_loss * max(count, 1) else "loss"
