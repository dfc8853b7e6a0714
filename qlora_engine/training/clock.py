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


class Lap:
    """One timed block; `seconds` is set at its end."""

    seconds = 0.0


class Clock:
    """Time spent in training since it was last asked, and since the last checkpoint."""

    def __init__(self) -> None:
        self._seconds, self._tokens, self._steps, self._positions, self._filled = 0.0, 0, 0, 0, 0
        self._saved = time.monotonic()

    @contextmanager
    def running(self) -> Iterator[Lap]:
        """Count the time of this block; the lap has it afterwards."""
        lap, started = Lap(), time.perf_counter()
        yield lap
        lap.seconds = time.perf_counter() - started
        self._seconds += lap.seconds

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
