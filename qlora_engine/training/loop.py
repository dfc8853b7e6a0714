"""The training loop: windows from the plan, a micro-batch at a time, until the end or a request to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from qlora_engine.job.datafiles import Split
from qlora_engine.job.errors import TrainingFailed
from qlora_engine.job.events import EventLog
from qlora_engine.job.spec import JobSpec
from qlora_engine.training.batches import Plan, Window, pad
from qlora_engine.training.data import Document
from qlora_engine.training.dropout import step_key
from qlora_engine.training.evaluate import Evaluation, evaluate
from qlora_engine.training.progress import Progress
from qlora_engine.training.step import TrainingStep, Update
from qlora_engine.training.stop import StopRequest

GIGA = 1e9
MAX_DROPPED = 5  # windows in a row


@dataclass(frozen=True)
class Loop:
    """What a run trains with.

    Attributes:
        save: writes a checkpoint of the step's state at a progress.
        metrics: receives `training.step`, one a micro-batch; `log` everything else.
    """

    spec: JobSpec
    plan: Plan
    documents: Mapping[Split, Sequence[Document]]
    step: TrainingStep
    save: Callable[[Progress], None]
    log: EventLog
    metrics: EventLog
    stop: StopRequest

    def run(self, progress: Progress) -> Progress:
        """Train from a position to the end, or to the window's end where a stop finds it.

        A checkpoint stands at the position that is returned.

        Raises:
            TrainingFailed: the numbers do not allow to go on.
        """
        windows = self.plan.windows(epoch=progress.epoch, index=progress.window, step=progress.step)
        clock = _Clock()
        while True:
            progress = self._validate_if_due(progress)
            finished = progress.step >= self.plan.steps
            due = progress.due(self.spec.save_steps, progress.saved, self.plan.steps)
            if due or (self.stop.asked and progress.step > progress.saved):
                progress = progress.after_save()
                self.save(progress)
            if finished or self.stop.asked:
                return progress
            after = self._train_window(next(windows), progress, clock)
            if after is None:  # stopped inside the window, which is trained again from its start
                if progress.step > progress.saved:
                    progress = progress.after_save()
                    self.save(progress)
                return progress
            progress = after

    def _train_window(self, window: Window, progress: Progress, clock: _Clock) -> Progress | None:
        before = progress
        for rows in window.micro_batches:
            if self.stop.asked:
                self.step.discard()
                return None
            progress = self._micro_batch(rows, progress, clock)
            if progress.step - before.step == len(window.micro_batches):
                progress = self._finish_window(window, before, progress, clock)
            if progress.due(self.spec.steps_per_report, progress.step - progress.report_steps, self.plan.steps):
                progress = self._report(progress, clock)
        return progress

    def _micro_batch(self, rows: Sequence[int], progress: Progress, clock: _Clock) -> Progress:
        with clock.running() as lap:
            tokens, supervised = pad([self.documents["train"][row] for row in rows], self.spec.max_seq_length)
            key = step_key(self.spec.seed, progress.step)
            loss, count = self.step.micro_batch(mx.array(tokens), mx.array(supervised), key)
            self._trim_cache()
        clock.count(count)
        progress = progress.after_micro_batch(loss, count)
        self.metrics.emit(
            "training.step",
            step=progress.step,
            steps=self.plan.steps,
            update=progress.update,
            epoch=progress.epoch,
            loss=loss / count if count else None,
            tokens=count,
            tokens_per_second=round(count / lap.seconds, 1),
            seconds=round(lap.seconds, 4),
            **memory(),
        )
        return progress

    def _finish_window(self, window: Window, before: Progress, progress: Progress, clock: _Clock) -> Progress:
        with clock.running():
            update = self.step.update()
        # A window without a target has nothing to apply, which is no fault.
        dropped = not update.applied and progress.tokens > before.tokens
        progress = progress.after_window(window, self.plan, update, dropped=dropped)
        if dropped:
            self._say_dropped(window, progress, update)
        return progress

    def _say_dropped(self, window: Window, progress: Progress, update: Update) -> None:
        rows = [row for rows in window.micro_batches for row in rows]
        place = "gradient" if math.isfinite(update.loss) else "loss"
        self.log.emit("guard.dropped", step=progress.step, place=place, rows=rows, loss=update.loss)
        if progress.dropped >= MAX_DROPPED:
            raise TrainingFailed(
                f"The {place} was not finite in {MAX_DROPPED} windows in a row.",
                where=f"step {progress.step}, gradient norm {update.gradient_norm}",
                remedy="Lower learning_rate or lora_parameters.scale, set grad_clip: 1.0, and look at the rows "
                f"{rows[:8]} of the training data.",
            )

    def complete(self, progress: Progress) -> bool:
        """Every micro-batch is done, and the validation that follows the last one too."""
        return progress.step >= self.plan.steps and not self._validation_due(progress)

    def _validation_due(self, progress: Progress) -> bool:
        wanted = bool(self.documents.get("valid")) and self.spec.val_batches != 0
        return wanted and progress.due(self.spec.eval_every, progress.validated, self.plan.steps)

    def _validate_if_due(self, progress: Progress) -> Progress:
        if not self._validation_due(progress):
            return progress
        result = self.evaluate("valid", self.spec.val_batches, progress.step)
        return progress if result is None else progress.after_validation(result.loss)

    def evaluate(self, split: Split, batches: int, step: int) -> Evaluation | None:
        """Evaluate a split and say the result; None if a stop was asked for midway."""
        started = time.perf_counter()
        result = evaluate(
            self.step.sync_model(),
            self.documents[split],
            batch_size=self.spec.batch_size,
            batches=batches,
            longest=self.spec.max_seq_length,
            seed=self.spec.seed,
            stop=self.stop,
        )
        if result is not None:
            self.log.emit(
                "validation",
                step=step,
                split=split,
                loss=result.loss,
                perplexity=result.perplexity,
                tokens=result.tokens,
                rows=result.rows,
                seconds=round(time.perf_counter() - started, 3),
            )
        return result

    def _report(self, progress: Progress, clock: _Clock) -> Progress:
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
            **memory(),
        )
        return progress.after_report()

    def _trim_cache(self) -> None:
        threshold = self.spec.clear_cache_threshold
        if threshold and mx.get_cache_memory() > threshold:
            mx.clear_cache()


def memory() -> dict[str, Any]:
    """MLX's memory, 10^9 bytes."""
    return {
        "memory_gb": round(mx.get_active_memory() / GIGA, 3),
        "peak_gb": round(mx.get_peak_memory() / GIGA, 3),
    }


@dataclass(frozen=True)
class _Speed:
    tokens: float
    steps: float


class _Lap:
    seconds = 0.0


class _Clock:
    """Time spent in training proper since it was last asked; validation and checkpoints are not in it."""

    def __init__(self) -> None:
        self._seconds, self._tokens, self._steps = 0.0, 0, 0

    @contextmanager
    def running(self) -> Iterator[_Lap]:
        """Count the time of this block; the lap has it afterwards."""
        lap, started = _Lap(), time.perf_counter()
        yield lap
        lap.seconds = time.perf_counter() - started
        self._seconds += lap.seconds

    def count(self, tokens: int) -> None:
        """Count one micro-batch."""
        self._tokens, self._steps = self._tokens + tokens, self._steps + 1

    def take(self) -> _Speed:
        """The speed since the last call."""
        seconds = self._seconds or math.inf
        speed = _Speed(round(self._tokens / seconds, 1), round(self._steps / seconds, 3))
        self._seconds, self._tokens, self._steps = 0.0, 0, 0
        return speed
