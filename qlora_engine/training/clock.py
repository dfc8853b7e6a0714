"""How fast training proper goes; validation and checkpoints are not in it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Speed:
    """Targets and micro-batches a second, and the share of the computed positions that held no token."""

    tokens: float
    steps: float
    padding: float


class Clock:
    """Time spent in training: since the last batch, since it was last asked, and since the last checkpoint.

    All time counts that nothing else was named for: what is begun early runs on while events are written, so that the
    time inside of a batch alone says too little.
    """

    def __init__(self) -> None:
        self._seconds, self._tokens, self._steps, self._positions, self._filled = 0.0, 0, 0, 0, 0
        self._lap_began = time.perf_counter()
        self._saved = time.monotonic()

    def lap(self) -> float:
        """Seconds of training since this was last called, or since the start."""
        now = time.perf_counter()
        seconds, self._lap_began = now - self._lap_began, now
        self._seconds += seconds
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of this block: it is no training."""
        began = time.perf_counter()
        yield
        self._lap_began += time.perf_counter() - began

    def count(self, tokens: int, steps: int, positions: int, filled: int) -> None:
        """Count a batch: its targets, the micro-batches it stands for, its positions and those that hold a token."""
        self._tokens, self._steps = self._tokens + tokens, self._steps + steps
        self._positions, self._filled = self._positions + positions, self._filled + filled

    def take(self) -> Speed:
        """The speed since the last call."""
        seconds = self._seconds or math.inf
        padding = 1 - self._filled / self._positions if self._positions else 0.0
        speed = Speed(round(self._tokens / seconds, 1), round(self._steps / seconds, 3), round(padding, 4))
        self._seconds, self._tokens, self._steps, self._positions, self._filled = 0.0, 0, 0, 0, 0
        return speed

    def note_saved(self) -> None:
        """A checkpoint has been written."""
        self._saved = time.monotonic()

    def minutes_since_save(self) -> float:
        """Since the last checkpoint, or the start."""
        return (time.monotonic() - self._saved) / 60
