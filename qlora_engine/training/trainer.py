"""Training one window: its batches, each under the guard, then one optimizer step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qlora_engine.job.events import EventLog
from qlora_engine.job.pulse import Pulse
from qlora_engine.job.spec import JobSpec
from qlora_engine.training import memory
from qlora_engine.training.batches import Plan, Window
from qlora_engine.training.clock import Clock
from qlora_engine.training.data import Document
from qlora_engine.training.guard import place_of
from qlora_engine.training.ladder import Layout
from qlora_engine.training.memory import Limits
from qlora_engine.training.packing import Batch, Packing, Rows, lay_out
from qlora_engine.training.progress import Progress
from qlora_engine.training.results import MicroBatch
from qlora_engine.training.starter import Prepared, Starter
from qlora_engine.training.step import TrainingStep
from qlora_engine.training.stop import StopRequest
from qlora_engine.training.targets import Targets
from qlora_engine.training.thinning import is_written


@dataclass(frozen=True)
class Trainer:
    """What windows are trained with.

    Attributes:
        vocabulary: how many tokens the model knows.
        documents: of the training data.
        metrics: receives `training.step`, one a batch; `log` everything else.
        starter: has the step compute what comes.
    """

    spec: JobSpec
    layout: Layout
    limits: Limits
    vocabulary: int
    plan: Plan
    packing: Packing
    documents: Sequence[Document]
    step: TrainingStep
    starter: Starter
    log: EventLog
    metrics: EventLog
    stop: StopRequest
    pulse: Pulse

    def prepare(self, window: Window) -> list[Prepared]:
        """The batches of a window and their arrays, without MLX, so that another thread may do it."""
        batches = lay_out(window, self.plan.lengths, self.packing, self.spec.batch_size)
        return [Prepared(batch, self._parts(batch)) for batch in batches]

    def _parts(self, batch: Batch) -> tuple[tuple[Rows, Targets], ...]:
        parts = batch.parts(self.layout.rows, self.spec.batch_size)
        return tuple((rows, self.packing.targets(self.documents, rows)) for rows in parts)

    def train(
        self,
        window: Window,
        batches: Sequence[Prepared],
        before: Progress,
        clock: Clock,
        following: Sequence[Prepared] = (),
    ) -> Progress | None:
        """One optimizer step; None when it was stopped midway, and a tripped guard when it cannot be finished.

        Args:
            following: the next window's batches, the first of which may be begun.
        """
        progress = before
        for prepared in batches:
            if self.stop.asked:
                self.starter.discard()
                return None
            after = following[:1] if prepared is batches[-1] else ()
            progress = self._train_batch(prepared, progress, clock, last=prepared is batches[-1], following=after)
            if progress.guard.tripped:
                self.starter.discard()
                return progress
            if prepared is batches[-1]:
                progress = self._finish([prepared.batch for prepared in batches], window, before, progress)
            if progress.due(self.spec.steps_per_report, progress.step - progress.report_steps, self.plan.steps):
                progress = self._report(progress, clock)
        return progress

    def _train_batch(
        self, prepared: Prepared, progress: Progress, clock: Clock, *, last: bool, following: Sequence[Prepared]
    ) -> Progress:
        batch = prepared.batch
        if batch.step in progress.guard.skipped:
            steps = progress.report_steps + batch.steps
            return replace(progress, step=progress.step + batch.steps, report_steps=steps)
        # Computed in several parts, a batch is short of memory rather than of time.
        after = following if last and len(prepared.parts) == 1 else None
        done = [self._compute(prepared, index, progress, after) for index in range(len(prepared.parts))]
        memory.trim(self.spec, self.limits, progress.step + batch.steps)
        seconds = clock.lap()
        self.starter.took(seconds)
        count = sum(d.count for d in done)
        kept = [d for d in done if d.good]
        good = len(kept) == len(done)
        end = batch.step + batch.steps
        guard = progress.guard.accepted(end) if good else progress.guard.refused([batch.step])
        clock.count(count, batch.steps, sum(d.positions for d in done), sum(d.filled for d in done))
        progress = progress.after_batch(batch.steps, sum(d.loss for d in kept), sum(d.count for d in kept), guard)
        if is_written(progress.step - batch.steps, progress.step):
            self._say_step(prepared, done, progress, seconds)
        return progress

    def _say_step(self, prepared: Prepared, done: Sequence[MicroBatch], progress: Progress, seconds: float) -> None:
        loss, count = sum(d.loss for d in done), sum(d.count for d in done)
        self.metrics.emit(
            "training.step",
            step=progress.step,
            steps=self.plan.steps,
            update=progress.update,
            epoch=progress.epoch,
            loss=loss / count if count else None,
            tokens=count,
            tokens_per_second=round(count / seconds, 1),
            gradient_norm=max(d.gradient_norm for d in done),
            seconds=round(seconds, 4),
            rows=sum(len(rows) for rows, _ in prepared.parts),
            documents=len(prepared.batch.documents),
            **memory.usage(),
        )

    def _compute(
        self, prepared: Prepared, index: int, progress: Progress, following: Sequence[Prepared] | None
    ) -> MicroBatch:
        """Add the gradients of some rows to the window, unless the guard finds them wrong.

        Args:
            index: of the part.
            following: what follows the window that this part is the last of, or None.
        """
        rows, targets = prepared.parts[index]
        if targets.highest >= self.vocabulary:  # MLX would read past the end of the embedding without a word
            self._say_dropped("batch", rows, progress, f"token {targets.highest} of {self.vocabulary}")
            return MicroBatch(math.nan, targets.count, math.nan, good=False)
        started = self.starter.micro_batch(prepared, index)
        if following is not None:
            self.starter.begin(following, progress.guard.skipped)
        done = started.result()
        self.pulse.beat(progress.step)
        if not done.good:
            place = place_of(done.loss, done.count, self.spec.max_loss)
            mean = done.loss / max(done.count, 1)
            value = f"{mean:g}" if place == "loss" else f"{done.gradient_norm:g}"
            self._say_dropped(place, rows, progress, value, loss=mean, norm=done.gradient_norm)
        return done

    def _finish(self, batches: Sequence[Batch], window: Window, before: Progress, progress: Progress) -> Progress:
        update = self.starter.update()
        guard = progress.guard
        if update.count and not update.applied:  # good gradients, but an update that is not finite
            guard = before.guard.refused([batch.step for batch in batches])
            rows = [row for batch in batches for row in batch.rows]
            norm = update.gradient_norm
            self._say_dropped("update", rows, before, f"gradient norm {norm:g}", norm=norm, dropped=len(batches))
        return progress.after_window(window, self.plan, update, guard)

    def _say_dropped(
        self,
        place: str,
        rows: Sequence[Sequence[int]],
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
            rows=[document for row in rows for document in row],
            loss=loss,
            gradient_norm=norm,
            value=value,
            in_a_row=len(before.guard.dropped) + dropped,
        )

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
            padding=speed.padding,
            shapes=self.step.shapes,
            seconds_left=round((self.plan.steps - progress.step) / speed.steps, 1) if speed.steps else None,
            **memory.usage(),
        )
        return progress.after_report()
