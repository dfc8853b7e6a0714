"""Time that went by without the daemon: the machine slept, everything was stopped, or somebody set the clock."""

from __future__ import annotations

import time
from dataclasses import dataclass

from qlora_engine.job.record import utc_now

SLEPT_SECONDS = 1.0  # less is the clocks' own difference
STOPPED_SECONDS = 5.0  # less is a machine that is busy
SET_SECONDS = 2.0  # less is a clock that is being kept right


def sleepless() -> float:
    """Seconds on a clock that nobody sets and that goes on while the machine sleeps; `time.monotonic` does not.

    That is CLOCK_BOOTTIME on Linux, and CLOCK_MONOTONIC_RAW on macOS, where `time.monotonic` is `mach_absolute_time`.
    """
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC_RAW))


@dataclass(frozen=True)
class Clocks:
    """The same moment on three clocks, seconds.

    Attributes:
        running: stands still while the machine sleeps.
        sleepless: never does.
        wall: as people set it.
    """

    running: float
    sleepless: float
    wall: float

    @classmethod
    def now(cls) -> Clocks:
        """What they show now."""
        return cls(time.monotonic(), sleepless(), utc_now().timestamp())


@dataclass(frozen=True)
class Gap:
    """What went by, seconds.

    Attributes:
        slept: the machine slept.
        stopped: the daemon did not run although the machine did, as after SIGSTOP.
        set_by: how far the clock on the wall was set forward, or back.
    """

    slept: float = 0.0
    stopped: float = 0.0
    set_by: float = 0.0

    @property
    def on_the_wall(self) -> float:
        """How far the clock on the wall has gone in time that no job trained, or went without time."""
        return self.slept + self.stopped + self.set_by


def gap(before: Clocks, after: Clocks, expected: float) -> Gap | None:
    """What went by between two moments beyond what should have; None if nothing.

    Args:
        expected: seconds that should have passed at most on the running clock.
    """
    running, whole = after.running - before.running, after.sleepless - before.sleepless
    slept, stopped = whole - running, running - expected
    set_by = after.wall - before.wall - whole
    found = Gap(
        slept if slept >= SLEPT_SECONDS else 0.0,
        stopped if stopped >= STOPPED_SECONDS else 0.0,
        set_by if abs(set_by) >= SET_SECONDS else 0.0,
    )
    return found if found != Gap() else None
