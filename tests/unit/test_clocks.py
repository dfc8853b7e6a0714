"""Time that went by without the daemon."""

from __future__ import annotations

import pytest

from qlora_daemon.clocks import Clocks, Gap, gap

BEFORE = Clocks(running=100.0, sleepless=5000.0, wall=1.7e9)


def after(running: float, *, slept: float = 0.0, set_by: float = 0.0) -> Clocks:
    return Clocks(BEFORE.running + running, BEFORE.sleepless + running + slept, BEFORE.wall + running + slept + set_by)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (after(30.0), None),
        (after(33.0), None),  # a machine that is busy
        (after(30.0, set_by=0.4), None),  # a clock that is kept right
        (after(12.0, slept=28_800.0), Gap(slept=28_800.0)),
        (after(90.0), Gap(stopped=60.0)),
        (after(30.0, set_by=3600.0), Gap(set_by=3600.0)),
        (after(30.0, set_by=-86_400.0), Gap(set_by=-86_400.0)),
        (after(5.0, slept=600.0, set_by=7200.0), Gap(slept=600.0, set_by=7200.0)),
    ],
)
def test_sleep_a_standstill_and_a_clock_that_was_set_are_told_apart(now: Clocks, expected: Gap | None) -> None:
    """A night must not count as training, and a zone that was corrected must not count as a night."""
    found = gap(BEFORE, now, expected=30.0)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        parts = (found.slept, found.stopped, found.set_by)
        assert parts == pytest.approx((expected.slept, expected.stopped, expected.set_by), abs=0.001)
        assert found.on_the_wall == pytest.approx(sum(parts))


def test_nothing_goes_by_in_a_moment() -> None:
    """The clocks of this machine agree with one another."""
    assert gap(Clocks.now(), Clocks.now(), expected=0.0) is None
