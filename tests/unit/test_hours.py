"""The hours in which training may run, as people write them and as the clock on the wall shows them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_engine.job.errors import BadSetting
from qlora_engine.job.hours import WEEK, Hours
from qlora_worker.settings import Settings

MONDAY = datetime(2026, 11, 23)
NIGHTS = Hours.of("Mon-Fri 22:00-07:00, Sat-Sun 00:00-24:00")


@pytest.mark.parametrize(
    ("day", "time", "is_open"),
    [
        (0, "22:00", True),
        (0, "21:59", False),
        (1, "06:59", True),
        (1, "07:00", False),
        (5, "00:00", True),
        (6, "23:59", True),
        (0, "03:00", False),  # Sunday ends at midnight, and Monday's night begins at 22:00
        (4, "23:00", True),
    ],
)
def test_a_range_belongs_to_the_day_on_which_it_begins(day: int, time: str, is_open: bool) -> None:
    """`Fri 22:00-07:00` reaches into Saturday; nobody writes that as two ranges."""
    hours, minutes = map(int, time.split(":"))
    assert NIGHTS.open_at(MONDAY + timedelta(days=day, hours=hours, minutes=minutes)) is is_open


def test_nothing_written_means_always() -> None:
    """A daemon that nobody has told anything trains."""
    for text in ("", "  ", ","):
        assert Hours.of(text).open_at(MONDAY)
        assert Hours.of(text).next_opening(MONDAY) is None


@pytest.mark.parametrize(
    "text",
    ["22-7", "22:00", "22:00-22:00", "24:00-07:00", "25:00-07:00", "22:60-07:00", "xyz 22:00-07:00", "Mon-Fri",
     "Mon-xyz 22:00-07:00", "22:00-07:00 08:00-09:00", "always"],
)  # fmt: skip
def test_hours_that_cannot_be_read_are_refused_when_the_daemon_starts(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slip must not mean always, nor never."""
    with pytest.raises(ValueError, match=r"should be like|empty range|no time of a day|days are"):
        Hours.of(text)
    monkeypatch.setenv("QLORAD_TRAINING_HOURS", text)
    with pytest.raises(BadSetting, match="QLORAD_TRAINING_HOURS"):
        Settings.read()


ranges = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 1439), st.integers(0, 1440)).filter(
        lambda one: one[2] != one[3]
    ),
    min_size=1,
    max_size=4,
)
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def written(parts: list[tuple[int, int, int, int]]) -> str:
    return ", ".join(
        f"{DAYS[first]}-{DAYS[last]} {begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"
        for first, last, begin, end in parts
    )


@given(ranges, st.integers(0, WEEK - 1))
def test_the_next_opening_is_when_it_opens(parts: list[tuple[int, int, int, int]], minute: int) -> None:
    """What a person reads in `qlora ls` is what happens."""
    hours, now = Hours.of(written(parts)), MONDAY + timedelta(minutes=minute, seconds=30)
    opens = hours.next_opening(now)
    assert (opens is None) == hours.open_at(now)
    if opens is not None:
        assert now < opens <= now + timedelta(days=7)
        assert hours.open_at(opens)
        assert not hours.open_at(opens - timedelta(minutes=1))


def test_the_clock_on_the_wall_counts_when_summer_time_begins_and_ends() -> None:
    """Training stops at seven by the clock, on the short night and on the long one."""
    nights, berlin = Hours.of("22:00-07:00"), ZoneInfo("Europe/Berlin")
    for evening, hours_open in ((datetime(2026, 3, 28, 12), 8), (datetime(2026, 10, 24, 12), 10)):
        start = evening.replace(tzinfo=berlin).astimezone(UTC)
        minutes = (start + timedelta(minutes=number) for number in range(24 * 60))
        assert sum(nights.open_at(minute.astimezone(berlin)) for minute in minutes) == hours_open * 60
