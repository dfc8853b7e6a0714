"""Times as people write them."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime

import pytest

from qlora_engine.job.when import moment_of, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h30m", 9000), ("1d 2h", 93600), (" 1.5H ", 5400), (60, 60), (0.5, 0.5), ("45", 45)],
)
def test_durations(text: object, seconds: float) -> None:
    """As everybody writes them."""
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "h", "2x", "-5m", 0, -1, True, None, [], "400d", float("inf"), float("nan"), "1h2", "9" * 400 + "h"],
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    """Rather than read as something."""
    with pytest.raises(ValueError, match="such as"):
        seconds_of(text)


def test_a_number_too_large_for_a_float_is_no_duration() -> None:
    """In JSON and TOML a number may have any length; it would end whoever reads the file."""
    with pytest.raises(ValueError, match="such as"):
        seconds_of(10**400)


def test_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a zone they are those of the machine's clock."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        wanted = datetime(2026, 12, 1, 21, tzinfo=UTC)
        for text in (
            "2026-12-01 22:00",
            "2026-12-01T22:00:00+01:00",
            "2026-12-01T21:00:00Z",
            datetime(2026, 12, 1, 22),
        ):
            assert moment_of(text) == wanted
        assert moment_of(date(2026, 12, 1)) == moment_of("2026-12-01") == datetime(2026, 11, 30, 23, tzinfo=UTC)
    finally:
        monkeypatch.undo()
        time.tzset()
    for text in ("", "tomorrow", 5, None, "2026-13-01", "99999-01-01"):
        with pytest.raises(ValueError, match="such as"):
            moment_of(text)
