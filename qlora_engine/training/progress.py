"""Where a run stands: everything beside weights and optimizer that a resumed run must know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from qlora_engine.job.spec import EarlyStopping
from qlora_engine.training.batches import Plan, Window
from qlora_engine.training.guard import Guard
from qlora_engine.training.results import Update

ANCHORS = 2  # checkpoints made by count that a rollback may need


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
        saved: step of the last checkpoint; -1 before the first.
        saved_best: `best_step` when the last checkpoint was made.
        anchors: steps of the last checkpoints that were made by count, each after a good micro-batch.
        anchor_bests: `best_step` at each of them, to be kept for a run that goes back there.
        loss_before, loss_last: validation losses, the first and the newest.
        best_loss, best_step: the lowest validation loss and where.
        lowest: the validation loss that the next must undercut to count as an improvement (early stopping).
        worse: validations in a row that did not.
        stopped_early: training ends here, by the job's `early_stopping`.
        learning_rate, gradient_norm: of the last optimizer step.
        guard: what was dropped, and how often training went back.
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
    saved: int = -1
    saved_best: int | None = None
    anchors: tuple[int, ...] = ()
    anchor_bests: tuple[int | None, ...] = ()
    loss_before: float | None = None
    loss_last: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    lowest: float | None = None
    worse: int = 0
    stopped_early: bool = False
    learning_rate: float | None = None
    gradient_norm: float | None = None
    guard: Guard = field(default_factory=Guard)

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """From what `as_json` gave, through JSON."""
        return cls(**{**_with_tuples(value), "guard": Guard(**_with_tuples(value["guard"]))})

    def after_batch(self, steps: int, loss: float, tokens: int, guard: Guard) -> Self:
        """So many micro-batches further, with what the guard let through: its summed loss in nats and its targets."""
        return replace(
            self,
            step=self.step + steps,
            tokens=self.tokens + tokens,
            report_loss=self.report_loss + loss,
            report_tokens=self.report_tokens + tokens,
            report_steps=self.report_steps + steps,
            guard=guard,
        )

    def after_window(self, window: Window, plan: Plan, update: Update, guard: Guard) -> Self:
        """At the end of a window, pointing at the next; `update` is what its optimizer step did."""
        last = window.index + 1 == plan.windows_per_epoch
        return replace(
            self,
            update=self.update + update.applied,
            learning_rate=update.learning_rate,
            gradient_norm=update.gradient_norm,
            epoch=window.epoch + last,
            window=0 if last else window.index + 1,
            guard=guard,
        )

    def after_report(self) -> Self:
        """With the sums since the last report cleared."""
        return replace(self, report_loss=0.0, report_tokens=0, report_steps=0)

    def after_validation(self, loss: float, stopping: EarlyStopping | None) -> Self:
        """With a validation at this step."""
        # NaN is less than nothing, so it is never the best.
        best = loss < (math.inf if self.best_loss is None else self.best_loss)
        better = loss < (math.inf if self.lowest is None else self.lowest - (stopping.min_delta if stopping else 0.0))
        worse = 0 if better or self.step == 0 else self.worse + 1  # nothing was trained that could have made it worse
        return replace(
            self,
            validated=self.step,
            loss_before=self.loss_before if self.validated >= 0 else loss,
            loss_last=loss,
            best_loss=loss if best else self.best_loss,
            best_step=self.step if best else self.best_step,
            lowest=loss if better else self.lowest,
            worse=worse,
            stopped_early=stopping is not None and worse >= stopping.patience,
        )

    def after_save(self, *, by_count: bool) -> Self:
        """With a checkpoint at this step."""
        bests = dict(zip(self.anchors, self.anchor_bests, strict=True))
        # One made while micro-batches are dropped or passed over would push out those that training can go back to.
        if by_count and self.guard.last_good == self.step:
            bests[self.step] = self.best_step
        anchors = tuple(sorted(bests)[-ANCHORS:])
        return replace(
            self,
            saved=self.step,
            saved_best=self.best_step,
            anchors=anchors,
            anchor_bests=tuple(bests[anchor] for anchor in anchors),
        )

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


def _with_tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows lists alone."""
    return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
