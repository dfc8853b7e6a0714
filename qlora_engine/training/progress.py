"""Where a run stands: everything beside weights and optimizer that a resumed run must know."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from qlora_engine.training.batches import Plan, Window
from qlora_engine.training.step import Update


@dataclass(frozen=True)
class Progress:
    """A position in a run and what was counted on the way.

    Attributes:
        step: micro-batches done.
        update: optimizer steps done.
        epoch, window: the next window.
        tokens: targets trained.
        report_loss, report_tokens, report_steps: since the last report.
        validated: step of the last validation; -1 before the first.
        saved: step of the last checkpoint.
        loss_before, loss_last: validation losses, the first and the newest.
        best_loss, best_step: the lowest validation loss and where.
        learning_rate, gradient_norm: of the last optimizer step.
        dropped: windows that the guard kept from the optimizer, in a row.
    """

    step: int = 0
    update: int = 0
    epoch: int = 0
    window: int = 0
    tokens: int = 0
    report_loss: float = 0.0
    report_tokens: int = 0
    report_steps: int = 0
    validated: int = -1
    saved: int = 0
    loss_before: float | None = None
    loss_last: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    dropped: int = 0

    def after_micro_batch(self, loss: float, tokens: int) -> Self:
        """One micro-batch further, with its summed loss in nats and its targets."""
        return replace(
            self,
            step=self.step + 1,
            tokens=self.tokens + tokens,
            report_loss=self.report_loss + loss,
            report_tokens=self.report_tokens + tokens,
            report_steps=self.report_steps + 1,
        )

    def after_window(self, window: Window, plan: Plan, update: Update, *, dropped: bool) -> Self:
        """At the end of a window, pointing at the next.

        Args:
            update: what its optimizer step did.
            dropped: the guard kept its gradient from the optimizer.
        """
        last = window.index + 1 == plan.windows_per_epoch
        return replace(
            self,
            update=self.update + update.applied,
            learning_rate=update.learning_rate,
            gradient_norm=update.gradient_norm,
            dropped=self.dropped + 1 if dropped else 0,
            epoch=window.epoch + last,
            window=0 if last else window.index + 1,
        )

    def after_report(self) -> Self:
        """With the sums since the last report cleared."""
        return replace(self, report_loss=0.0, report_tokens=0, report_steps=0)

    def after_validation(self, loss: float) -> Self:
        """With a validation at this step."""
        # NaN is less than nothing, so it is never the best.
        best = loss < (math.inf if self.best_loss is None else self.best_loss)
        return replace(
            self,
            validated=self.step,
            loss_before=self.loss_before if self.validated >= 0 else loss,
            loss_last=loss,
            best_loss=loss if best else self.best_loss,
            best_step=self.step if best else self.best_step,
        )

    def after_save(self) -> Self:
        """With a checkpoint at this step."""
        return replace(self, saved=self.step)

    def due(self, every: int, last: int, steps: int) -> bool:
        """Whether something done every so many micro-batches, and at the end, is due.

        Windows may stride over a multiple of `every`; it is then due at the window's end. `last` is the step where
        it was last done, or -1 for something to be done before the first step as well.
        """
        if last < 0:
            return True
        return self.step != last and (self.step >= steps or self.step // every > last // every)

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)
