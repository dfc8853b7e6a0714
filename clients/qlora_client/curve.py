"""The curve of a run's losses in a bounded number of points, read from a file that may hold a hundred thousand."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_client.follow import Tail
from qlora_engine.job.events import parse_line

if TYPE_CHECKING:
    from qlora_engine.job.events import Event

MOST = 1024  # points; a terminal draws two a column
WHOLE = 4_000_000  # bytes of a metrics file that are read in full, some ten thousand micro-batches
PLACES = 1024  # of a larger file that are looked at
_PLACE_BYTES = 2048  # there: some four lines


@dataclass
class _Bucket:
    """Neighbouring micro-batches: their first and last step, and the sums that give their mean."""

    first: int
    last: int
    total: float
    weight: float
    count: int = 1


@dataclass(frozen=True)
class Point:
    """A loss at a step, nats; the mean over neighbouring micro-batches where there are many."""

    step: float
    loss: float


class Curve:
    """Losses in the order of their steps, at most `MOST` points: neighbours become one when there are more."""

    def __init__(self) -> None:
        self._buckets: list[_Bucket] = []
        self._each = 1  # micro-batches a bucket

    def add(self, step: int, loss: float, weight: float = 1.0) -> None:
        """Add a loss.

        A step that is not beyond the last one was done again, after a crash say: what lies from there on is given up.

        Args:
            step: micro-batches done.
            loss: mean over targets, nats.
            weight: the number of targets.
        """
        self.give_up_from(step)
        newest = self._buckets[-1] if self._buckets else None
        if newest is not None and newest.count < self._each:
            newest.last, newest.count = step, newest.count + 1
            newest.total, newest.weight = newest.total + loss * weight, newest.weight + weight
            return
        self._buckets.append(_Bucket(step, step, loss * weight, weight))
        if len(self._buckets) > MOST:
            self._halve()

    def give_up_from(self, step: int) -> None:
        """Forget what lies at this step and beyond."""
        while self._buckets and self._buckets[-1].first >= step:
            self._buckets.pop()
        if self._buckets and self._buckets[-1].last >= step:
            self._buckets[-1].last = step - 1  # a few that were given up stay in its mean

    def points(self) -> list[Point]:
        """The curve so far."""
        return [Point((found.first + found.last) / 2, found.total / found.weight) for found in self._buckets]

    def _halve(self) -> None:
        pairs = zip(self._buckets[::2], self._buckets[1::2], strict=False)
        halved = [
            _Bucket(one.first, two.last, one.total + two.total, one.weight + two.weight, one.count + two.count)
            for one, two in pairs
        ]
        self._buckets = halved + self._buckets[2 * len(halved) :]
        self._each *= 2


class CurveReader:
    """The curve of a metrics file, and of what is added to it; of a large file only so many places are read.

    Args:
        path: `metrics.jsonl` of a run.
    """

    def __init__(self, path: Path) -> None:
        self.curve = Curve()
        size = _size(path)
        self._tail = Tail(path, last_bytes=_PLACE_BYTES if size > WHOLE else None)
        if size > WHOLE:
            self._take(_sampled(path, size - _PLACE_BYTES))

    def look(self) -> Event | None:
        """Read what has been added; returns the newest micro-batch if there is one."""
        return self._take(self._tail.events())

    def close(self) -> None:
        """Give the file back."""
        self._tail.close()

    def _take(self, events: Iterable[Event]) -> Event | None:
        event = None
        for event in events:
            step, loss, tokens = event.get("step"), event.get("loss"), event.get("tokens")
            if isinstance(step, int) and isinstance(loss, int | float) and loss - loss == 0:
                self.curve.add(step, loss, tokens if isinstance(tokens, int) and tokens > 0 else 1)
        return event


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _sampled(path: Path, size: int) -> Iterable[Event]:
    """Whole lines from places spread evenly over the first `size` bytes, in order."""
    with path.open("rb") as file:
        for place in range(PLACES):
            found = os.pread(file.fileno(), _PLACE_BYTES, place * size // PLACES)
            for line in found.split(b"\n")[1:-1]:
                if (event := parse_line(line)) is not None:
                    yield event
