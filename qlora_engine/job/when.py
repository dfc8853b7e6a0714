"""Times as people write them in a job file or on a command line."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

from qlora_engine.job.text import local_time

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])\s*")
LONGEST = 366 * 86400.0  # seconds; more is a slip of the finger


def seconds_of(value: object) -> float:
    """How long a duration is: a number of seconds, or text such as `90s`, `30m`, `2h30m`, `1d`.

    Raises:
        ValueError: it is none, not positive, or longer than a year.
    """
    found: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        found = value  # no float yet: an integer may be too large for one
    elif isinstance(value, str):
        text = value.strip().lower()
        if re.fullmatch(f"(?:{_PART.pattern})+", text):
            found = sum(float(count) * _UNITS[unit] for count, unit in _PART.findall(text))
        elif re.fullmatch(r"\d+(?:\.\d+)?", text):
            found = float(text)
    if found is None or not 0 < found <= LONGEST:
        raise ValueError("should be a duration such as 90s, 30m, 2h30m or 1d, of a year at most")
    return float(found)


def moment_of(value: object) -> datetime:
    """A time as a moment in UTC: `2026-12-01 22:00` is local time, `2026-12-01T22:00:00+01:00` is not.

    Raises:
        ValueError: it is none.
    """
    found: datetime | None = None
    if isinstance(value, datetime):
        found = value
    elif isinstance(value, date):
        found = datetime(value.year, value.month, value.day)  # local time, as below
    elif isinstance(value, str):
        try:
            found = datetime.fromisoformat(value.strip())
        except ValueError:
            found = None
    if found is None:
        raise ValueError("should be a date and time such as 2026-12-01 22:00 (local time) or 2026-12-01T22:00:00+01:00")
    try:
        return found.astimezone(UTC)  # one without a zone is local
    except (OverflowError, OSError):
        raise ValueError("is too far away") from None


def too_early(not_before: datetime | None, rests_until: datetime | None, now: datetime) -> str | None:
    """What a queued job waits for by the clock, for a person; None when for nothing.

    Args:
        not_before: when it may start.
        rests_until: when it may be tried again.
    """
    if not_before is not None and not_before > now:
        return f"starts at {local_time(not_before, date=True)} or later"
    if rests_until is not None and rests_until > now:
        return f"is tried again at {local_time(rests_until, date=True)}"
    return None
