"""The training loop: windows from the plan, a micro-batch at a time, until the end or a request to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qlora_engine.job.datafiles import Split
from qlora_engine.job.errors import TrainingFailed
from qlora_engine.job.events import EventLog
from qlora_engine.job.pulse import Pulse
from qlora_engine.job.spec import JobSpec
from qlora_engine.training import memory
from qlora_engine.training.batches import Plan, Window, pad, split
from qlora_engine.training.clock import Clock
from qlora_engine.training.data import Document
from qlora_engine.training.dropout import slice_key, step_key
from qlora_engine.training.evaluate import Evaluation, evaluate
from qlora_engine.training.guard import MAX_DROPPED, MAX_ROLLBACKS, place_of
from qlora_engine.training.head import Targets
from qlora_engine.training.ladder import Layout
from qlora_engine.training.memory import Limits
from qlora_engine.training.progress import Progress
from qlora_engine.training.step import MicroBatch, TrainingStep
from qlora_engine.training.stop import StopRequest


@dataclass(frozen=True)
class Loop:
    """What a run trains with.

    Attributes:
        vocabulary: how many tokens the model knows.
        save: writes a checkpoint of the step's state at a progress, and says why.
        roll_back: takes the step back to a checkpoint after a progress whose guard has tripped; returns where it is.
        metrics: receives `training.step`, one a micro-batch; `log` everything else.
    """

    spec: JobSpec
    layout: Layout
    limits: Limits
    vocabulary: int
    plan: Plan
    documents: Mapping[Split, Sequence[Document]]
    step: TrainingStep
    save: Callable[[Progress, str], None]
    roll_back: Callable[[Progress], Progress]
    log: EventLog
    metrics: EventLog
    stop: StopRequest
    pulse: Pulse

    def run(self, progress: Progress) -> Progress:
        """Train from a position to the end, or to the window's end where a stop finds it.

        A checkpoint stands at the position that is returned.

        Raises:
            TrainingFailed: the numbers do not allow to go on.
        """
        clock = Clock()
        windows = self._windows(progress)
        while True:
            progress = self._validate_if_due(progress)
            finished = progress.step >= self.plan.steps or progress.stopped_early
            if why := self._why_save(progress, clock, finished=finished):
                progress = self._save(progress, why, clock)
            if finished or self.stop.asked:
                return progress
            after = self._train_window(next(windows), progress, clock)
            if after is None:  # stopped inside the window, which is trained again from its start
                return self._save(progress, "stop", clock) if progress.step > progress.saved else progress
            if after.guard.tripped:
                after = self._go_back(after)
                windows = self._windows(after)
            progress = after

    def complete(self, progress: Progress) -> bool:
        """Every micro-batch is done, and the validation that follows the last one too."""
        over = progress.step >= self.plan.steps and not self._validation_due(progress)
        return over or progress.stopped_early

    def _windows(self, progress: Progress) -> Any:  # an iterator of windows
        return self.plan.windows(epoch=progress.epoch, index=progress.window, step=progress.step)

    # Training

    def _train_window(self, window: Window, progress: Progress, clock: Clock) -> Progress | None:
        """One optimizer step; None when it was stopped midway, and a tripped guard when it cannot be finished."""
        before = progress
        for rows in window.micro_batches:
            if self.stop.asked:
                self.step.discard()
                return None
            progress = self._micro_batch(rows, progress, clock)
            if progress.guard.tripped:
                self.step.discard()
                return progress
            if progress.step - before.step == len(window.micro_batches):
                progress = self._finish_window(window, before, progress, clock)
            if progress.due(self.spec.steps_per_report, progress.step - progress.report_steps, self.plan.steps):
                progress = self._report(progress, clock)
        return progress

    def _micro_batch(self, rows: Sequence[int], progress: Progress, clock: Clock) -> Progress:
        if progress.step in progress.guard.skipped:
            return replace(progress, step=progress.step + 1, report_steps=progress.report_steps + 1)
        with clock.running() as lap:
            done = [
                self._compute(part, progress, slice_key(step_key(self.spec.seed, progress.step), index))
                for index, part in enumerate(split(rows, self.layout.rows))
            ]
            memory.trim(self.spec, self.limits, progress.step + 1)
        loss, count = sum(d.loss for d in done), sum(d.count for d in done)
        kept = [d for d in done if d.good]
        good = len(kept) == len(done)
        guard = progress.guard.accepted(progress.step) if good else progress.guard.refused([progress.step])
        clock.count(count)
        progress = progress.after_micro_batch(sum(d.loss for d in kept), sum(d.count for d in kept), guard)
        self.metrics.emit(
            "training.step",
            step=progress.step,
            steps=self.plan.steps,
            update=progress.update,
            epoch=progress.epoch,
            loss=loss / count if count else None,
            tokens=count,
            tokens_per_second=round(count / lap.seconds, 1),
            gradient_norm=max(d.gradient_norm for d in done),
            seconds=round(lap.seconds, 4),
            **memory.usage(),
        )
        return progress

    def _compute(self, rows: Sequence[int], progress: Progress, key: Any) -> MicroBatch:
        """Add the gradients of some rows to the window, unless the guard finds them wrong."""
        targets = Targets(*pad([self.documents["train"][row] for row in rows], self.layout.longest))
        highest = max(int(targets.inputs.max()), int(targets.tokens.max()))
        if highest >= self.vocabulary:  # MLX would read past the end of the embedding without a word
            self._say_dropped("batch", rows, progress, f"token {highest} of {self.vocabulary}")
            return MicroBatch(math.nan, targets.count, math.nan, good=False)
        self.pulse.enter("compile" if self.step.compiles(targets) else "train")
        done = self.step.micro_batch(targets, key)
        self.pulse.beat(progress.step)
        if not done.good:
            place = place_of(done.loss, done.count, self.spec.max_loss)
            mean = done.loss / max(done.count, 1)
            value = f"{mean:g}" if place == "loss" else f"{done.gradient_norm:g}"
            self._say_dropped(place, rows, progress, value, loss=mean, norm=done.gradient_norm)
        return done

    def _finish_window(self, window: Window, before: Progress, progress: Progress, clock: Clock) -> Progress:
        with clock.running():
            update = self.step.update()
        guard = progress.guard
        if update.count and not update.applied:  # good gradients, but an update that is not finite
            guard = before.guard.refused(range(before.step, progress.step))
            rows = [row for rows in window.micro_batches for row in rows]
            norm = update.gradient_norm
            self._say_dropped(
                "update", rows, before, f"gradient norm {norm:g}", norm=norm, dropped=len(window.micro_batches)
            )
        return progress.after_window(window, self.plan, update, guard)

    def _say_dropped(
        self,
        place: str,
        rows: Sequence[int],
        before: Progress,
        value: str,
        *,
        loss: float | None = None,
        norm: float | None = None,
        dropped: int = 1,
    ) -> None:
        self.log.emit(
            "guard.dropped",
            step=before.step + dropped,
            place=place,
            rows=list(rows),
            loss=loss,
            gradient_norm=norm,
            value=value,
            in_a_row=len(before.guard.dropped) + dropped,
        )

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
        wanted = bool(self.documents.get("valid")) and self.spec.val_batches != 0
        return wanted and progress.due(self.spec.eval_every, progress.validated, self.plan.steps)

    def _validate_if_due(self, progress: Progress) -> Progress:
        if progress.stopped_early or not self._validation_due(progress):
            return progress
        result = self.evaluate("valid", self.spec.val_batches, progress.step)
        if result is None:
            return progress
        progress = progress.after_validation(result.loss, self.spec.early_stopping)
        if progress.stopped_early:
            self.log.emit(
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
        self.pulse.enter("validate" if part == "valid" else "test")
        result = evaluate(
            self.step,
            self.documents[part],
            rows=batches * self.spec.batch_size if batches >= 0 else -1,
            longest=self.layout.longest,
            at_once=self.layout.rows,
            seed=self.spec.seed,
            stop=self.stop,
            beat=lambda: self.pulse.beat(step),
        )
        if result is not None:
            self.log.emit(
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
        if unsaved and not finished and progress.due(self.spec.save_steps, progress.saved, self.plan.steps):
            return "count"
        if unsaved and finished:
            return "end"
        if progress.best_step != progress.saved_best:
            return "best"
        late = 0 < self.spec.checkpoint_minutes <= clock.minutes_since_save()
        if unsaved and (self.stop.asked or late):
            return "stop" if self.stop.asked else "time"
        return None

    def _save(self, progress: Progress, why: str, clock: Clock) -> Progress:
        progress = progress.after_save(by_count=why in ("start", "count"))
        self.pulse.enter("save")
        self.save(progress, why)
        clock.note_saved()
        return progress

    def _report(self, progress: Progress, clock: Clock) -> Progress:
        tokens = progress.report_tokens
        speed = clock.take()
        self.log.emit(
            "training.report",
            step=progress.step,
            steps=self.plan.steps,
            update=progress.update,
            epoch=round(progress.step / self.plan.steps_per_epoch, 3),
            loss=progress.report_loss / tokens if tokens else None,
            learning_rate=progress.learning_rate,
            gradient_norm=progress.gradient_norm,
            tokens=progress.tokens,
            tokens_per_second=speed.tokens,
            steps_per_second=speed.steps,
            seconds_left=round((self.plan.steps - progress.step) / speed.steps, 1) if speed.steps else None,
            **memory.usage(),
        )
        return progress.after_report()
