"""Beginning with the next micro-batch before the results of the one before are read, so that a GPU never waits."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from qlora_engine.job.pulse import Pulse
from qlora_engine.training.dropout import slice_key, step_key
from qlora_engine.training.packing import Batch, Rows
from qlora_engine.training.results import StartedMicroBatch, StartedUpdate, Update
from qlora_engine.training.step import TrainingStep
from qlora_engine.training.targets import Targets

# Seconds of a batch. A stop that is asked for waits for what was begun, so longer ones are not; reading a result takes
# a few milliseconds.
SHORT = 0.25


@dataclass(frozen=True)
class Prepared:
    """A batch, and the arrays of each part that is computed at once."""

    batch: Batch
    parts: tuple[tuple[Rows, Targets], ...]


@dataclass
class Starter:
    """Has a training step compute batches and updates, in the order in which they are trained.

    What is begun early is the same computation on the same weights: nothing comes of it but time. A checkpoint or a
    validation that comes between sees the weights after the update; a guard that trips, or a stop, discards it.

    Attributes:
        vocabulary: how many tokens the model knows.
        seed: of the run.
        short: seconds of a batch up to which the next one is begun early; 0 for never.
    """

    step: TrainingStep
    pulse: Pulse
    vocabulary: int
    seed: int
    short: float = 0.0
    _seconds: float = math.inf
    _update: StartedUpdate | None = None
    _micro_batch: tuple[int, StartedMicroBatch] | None = None

    def micro_batch(self, prepared: Prepared, index: int) -> StartedMicroBatch:
        """A part of a batch, which may have been begun already."""
        begun, self._micro_batch = self._micro_batch, None
        if begun is not None and begun[0] == prepared.batch.step:
            return begun[1]
        self.pulse.enter("compile" if self.step.compiles(prepared.parts[index][1]) else "train")
        return self._start(prepared, index)

    def begin(self, following: Sequence[Prepared], skipped: Collection[int]) -> None:
        """If batches are short, begin the window's update and, where it is sure to come, the next window's first batch.

        Args:
            following: that batch, or nothing.
            skipped: batches that the guard goes past.
        """
        if self._seconds > self.short:
            return
        self._update = self.step.start_update()
        for prepared in following:
            ((_, targets), *more) = prepared.parts
            odd = more or self.step.compiles(targets) or targets.highest >= self.vocabulary
            if not odd and prepared.batch.step not in skipped:
                self._micro_batch = prepared.batch.step, self._start(prepared, 0)

    def update(self) -> Update:
        """Apply the window."""
        begun, self._update = self._update, None
        return (begun or self.step.start_update()).result()

    def took(self, seconds: float) -> None:
        """Note how long the last batch took."""
        self._seconds = seconds

    def discard(self) -> None:
        """Forget the window, and what was begun for the next."""
        self.step.discard()
        self._update, self._micro_batch = None, None

    def _start(self, prepared: Prepared, index: int) -> StartedMicroBatch:
        key = slice_key(step_key(self.seed, prepared.batch.step), index)
        return self.step.start(prepared.parts[index][1], key)
