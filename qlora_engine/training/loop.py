"""The training loop: windows from the plan, validations and checkpoints between them, until the end or a stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from qlora_engine.job.datafiles import Split
from qlora_engine.job.errors import TrainingFailed
from qlora_engine.training.batches import Window
from qlora_engine.training.clock import Clock
from qlora_engine.training.data import Document
from qlora_engine.training.evaluate import Evaluation, evaluate
from qlora_engine.training.guard import MAX_DROPPED, MAX_ROLLBACKS
from qlora_engine.training.prefetch import ahead
from qlora_engine.training.progress import Progress
from qlora_engine.training.starter import Prepared
from qlora_engine.training.trainer import Trainer


@dataclass(frozen=True)
class Loop:
    """What a run trains with.

    Attributes:
        trainer: trains a window.
        documents: of each split.
        save: writes a checkpoint of the step's state at a progress, and says why; it may be written a while later.
        poll: says what has been written, or raises that it could not be.
        settle: the same when all has been.
        roll_back: takes the step back to a checkpoint after a progress whose guard has tripped; returns where it is.
    """

    trainer: Trainer
    documents: Mapping[Split, Sequence[Document]]
    save: Callable[[Progress, str], None]
    poll: Callable[[], None]
    settle: Callable[[], None]
    roll_back: Callable[[Progress], Progress]

    def run(self, progress: Progress) -> Progress:
        """Train from a position to the end, or to the window's end where a stop finds it.

        A checkpoint stands at the position that is returned.

        Raises:
            TrainingFailed: the numbers do not allow to go on.
        """
        clock = Clock()
        while True:
            with ahead(self._windows(progress), self.trainer.prepare) as windows:
                progress = self._train(windows, progress, clock)
            self.settle()
            if not progress.guard.tripped:
                return progress
            with clock.paused():
                progress = self._go_back(progress)

    def _train(self, windows: Iterator[tuple[Window, list[Prepared]]], progress: Progress, clock: Clock) -> Progress:
        """Train until the end, a stop, or a guard that has tripped."""
        self.trainer.starter.discard()  # what was begun before these windows
        following = next(windows, None)
        while True:
            with clock.paused():
                progress = self._validate_if_due(progress)
            finished = progress.step >= self.trainer.plan.steps or progress.stopped_early
            if why := self._why_save(progress, clock, finished=finished):
                progress = self._save(progress, why, clock)
            if finished or self.trainer.stop.asked:
                return progress
            assert following is not None  # noqa: S101  # there are windows until all micro-batches are done
            window, batches = following
            following = next(windows, None)
            after = self.trainer.train(window, batches, progress, clock, following[1] if following else ())
            self.poll()
            if after is None:  # stopped inside the window, which is trained again from its start
                return self._save(progress, "stop", clock) if progress.step > progress.saved else progress
            if after.guard.tripped:
                return after
            progress = after

    def complete(self, progress: Progress) -> bool:
        """Every micro-batch is done, and the validation that follows the last one too."""
        over = progress.step >= self.trainer.plan.steps and not self._validation_due(progress)
        return over or progress.stopped_early

    def _windows(self, progress: Progress) -> Iterator[Window]:
        return self.trainer.plan.windows(epoch=progress.epoch, index=progress.window, step=progress.step)

    def _go_back(self, tripped: Progress) -> Progress:
        if tripped.guard.gave_up:
            raise TrainingFailed(
                f"{MAX_DROPPED} micro-batches in a row gave numbers that cannot be right, also after training went "
                f"back to a checkpoint {MAX_ROLLBACKS} times, with a lower learning rate each time.",
                where=f"micro-batches {tripped.guard.dropped[0] + 1} to {tripped.step}; the `guard.dropped` events "
                "name the rows and values",
                remedy="Lower learning_rate or lora_parameters.scale, set grad_clip: 1.0, and look at the rows "
                "named there; when all rows are named, check the model with mlx_lm.generate.",
            )
        return self.roll_back(tripped)

    # Validation

    def _validation_due(self, progress: Progress) -> bool:
        wanted = bool(self.documents.get("valid")) and self.trainer.spec.val_batches != 0
        return wanted and progress.due(self.trainer.spec.eval_every, progress.validated, self.trainer.plan.steps)

    def _validate_if_due(self, progress: Progress) -> Progress:
        if progress.stopped_early or not self._validation_due(progress):
            return progress
        result = self.evaluate("valid", self.trainer.spec.val_batches, progress.step)
        if result is None:
            return progress
        if result.tokens == 0:  # rows whose answers are cut off, say: that measures nothing, for better or worse
            return replace(progress, validated=progress.step)
        progress = progress.after_validation(result.loss, self.trainer.spec.early_stopping)
        if progress.stopped_early:
            self.trainer.log.emit(
                "training.early_stopped",
                step=progress.step,
                best_loss=progress.best_loss,
                best_step=progress.best_step,
            )
        return progress

    def evaluate(self, part: Split, batches: int, step: int) -> Evaluation | None:
        """Evaluate a split and say the result; None if a stop was asked for midway.

        Args:
            batches: micro-batches of `batch_size` rows, or -1 for all rows.
        """
        started = time.perf_counter()
        self.trainer.pulse.enter("validate" if part == "valid" else "test")
        result = evaluate(
            self.trainer.step,
            self.documents[part],
            rows=batches * self.trainer.spec.batch_size if batches >= 0 else -1,
            longest=self.trainer.layout.longest,
            grid=self.trainer.packing.grid,
            at_once=self.trainer.layout.rows,
            seed=self.trainer.spec.seed,
            stop=self.trainer.stop,
            beat=lambda: self.trainer.pulse.beat(step),
        )
        if result is not None:
            self.trainer.log.emit(
                "validation",
                step=step,
                split=part,
                loss=result.loss,
                perplexity=result.perplexity,
                tokens=result.tokens,
                rows=result.rows,
                seconds=round(time.perf_counter() - started, 3),
            )
        return result

    # Checkpoints and reports

    def _why_save(self, progress: Progress, clock: Clock, *, finished: bool) -> str | None:
        """Why a checkpoint is due, or None. The first reason that holds is the one that a rollback can count on."""
        if progress.saved < 0:
            return "start"
        unsaved = progress.step > progress.saved
        if (
            unsaved
            and not finished
            and progress.due(self.trainer.spec.save_steps, progress.saved, self.trainer.plan.steps)
        ):
            return "count"
        if unsaved and finished:
            return "end"
        if progress.best_step != progress.saved_best:
            return "best"
        late = 0 < self.trainer.spec.checkpoint_minutes <= clock.minutes_since_save()
        if unsaved and (self.trainer.stop.asked or late):
            return "stop" if self.trainer.stop.asked else "time"
        return None

    def _save(self, progress: Progress, why: str, clock: Clock) -> Progress:
        progress = progress.after_save(by_count=why in ("start", "count"))
        self.trainer.pulse.enter("save")
        with clock.paused():
            self.save(progress, why)
        clock.note_saved()
        return progress
