"""The hours of the week in which training may run, as a person writes them: `22:00-07:00, Sat-Sun 00:00-24:00`.

They are read off the clock on the wall: where summer time begins, 02:30 does not come; where it ends, it comes twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY, WEEK = 24 * 60, 7 * 24 * 60  # minutes
_RANGE = re.compile(
    r"(?:(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))?\s+)?"
    r"(?P<from>\d{1,2}:\d{2})\s*-\s*(?P<to>\d{1,2}:\d{2})"
)
WRITTEN = "should be like 22:00-07:00 or Mon-Fri 19:00-07:00, Sat-Sun 00:00-24:00"


@dataclass(frozen=True)
class Hours:
    """When training may run.

    Attributes:
        ranges: minutes since Monday 00:00 and how many from there; empty for always.
    """

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, text: str) -> Self:
        """Read them; nothing but spaces means always. A range that ends before it begins goes on into the next day.

        Raises:
            ValueError: it is written in another way, or a range is empty.
        """
        ranges: list[tuple[int, int]] = []
        for part in filter(None, (part.strip().lower() for part in text.split(","))):
            found = _RANGE.fullmatch(part)
            if found is None:
                raise ValueError(f"{part!r:.60} {WRITTEN}")
            begin, end = _minutes(found["from"]), _minutes(found["to"])
            if begin in (end, DAY):
                raise ValueError(f"{part!r:.60} is an empty range; a whole day is 00:00-24:00")
            length = (end - begin) % DAY or DAY
            ranges += [(day * DAY + begin, length) for day in _days(found["first"], found["last"])]
        return cls(tuple(sorted(ranges)))

    def open_at(self, wall: datetime) -> bool:
        """Whether training may run at this time.

        Args:
            wall: local time; its zone is not looked at.
        """
        now = _of_week(wall)
        return not self.ranges or any((now - begin) % WEEK < length for begin, length in self.ranges)

    def next_opening(self, wall: datetime) -> datetime | None:
        """When training may run next, local time without a zone, where it may not now; None where it may.

        Args:
            wall: as above.
        """
        if self.open_at(wall):
            return None
        now = _of_week(wall)
        start = wall.replace(second=0, microsecond=0, tzinfo=None)
        return start + timedelta(minutes=min((begin - now) % WEEK for begin, _ in self.ranges))


def _of_week(wall: datetime) -> int:
    return wall.weekday() * DAY + wall.hour * 60 + wall.minute


def _minutes(text: str) -> int:
    hours, minutes = map(int, text.split(":"))
    if minutes > 59 or hours * 60 + minutes > DAY:
        raise ValueError(f"{text} is no time of a day")
    return hours * 60 + minutes


def _days(first: str | None, last: str | None) -> list[int]:
    """Days of the week from 0 for Monday; all of them where none is named. `Fri-Mon` goes over the weekend."""
    if first is None:
        return list(range(7))
    try:
        begin, end = DAYS.index(first), DAYS.index(last or first)
    except ValueError:
        written = first if last is None else f"{first}-{last}"
        raise ValueError(f"days are {', '.join(day.capitalize() for day in DAYS)}, not {written}") from None
    return [(begin + number) % 7 for number in range((end - begin) % 7 + 1)]
