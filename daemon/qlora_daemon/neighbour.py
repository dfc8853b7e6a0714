"""The daemon's regard for who else needs the machine: it looks while jobs run or wait, and says what changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from qlora_daemon.limits import Limits, Surroundings
from qlora_daemon.surroundings import Lookout, Reading
from qlora_engine.host.heat import Heat
from qlora_engine.host.power import Power
from qlora_engine.host.pressure import Pressure
from qlora_engine.job.events import EventLog
from qlora_engine.job.hindrance import Hindrance
from qlora_engine.job.record import utc_now


class Neighbour:
    """What the owner knows of the machine's surroundings, in the owner's thread; the lookout reads in its own.

    Args:
        limits: of the settings.
        every: seconds between two looks.
        tell: has the owner call `heard` with a reading.
        log: the service log.
        runs: a folder on the disk whose room counts.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        every: float,
        tell: Callable[[Reading], None],
        log: EventLog,
        runs: Path | None = None,
    ) -> None:
        self._limits, self._log = limits, log
        self._lookout = Lookout(tell, every, runs)
        self._around = Surroundings()
        self._cares = False
        self._hindrances: tuple[Hindrance, ...] = ()
        self.is_known = False  # nothing starts before the first look

    def start(self) -> None:
        """Have somebody who looks."""
        self._lookout.start()

    def stop(self) -> None:
        """Look no more."""
        self._lookout.stop()

    def care(self, cares: bool) -> None:
        """Whether a job runs or waits. With none the machine is left alone and what was known is forgotten."""
        if cares == self._cares:
            return
        self._cares = cares
        if not cares:
            self._around = Surroundings()
        self.look_again()

    def look_again(self) -> None:
        """What was known may be true no more: the machine has slept."""
        self.is_known = False
        self._lookout.care(self._cares)

    def heard(self, reading: Reading) -> None:
        """Take a reading in."""
        if not self._cares:
            return  # it was under way when the last job ended
        before, self._around = self._around, self._around.next(reading, self._limits, time.monotonic())
        self.is_known = True
        say_changes(before, self._around, self._log)

    def hindrances(self) -> tuple[Hindrance, ...]:
        """What keeps jobs from training now; says what began and what ended since it was last asked."""
        found = self._around.hindrances(self._limits, _wall()) if self._cares else ()
        before, self._hindrances = self._hindrances, found
        known, kinds = {hindrance.kind for hindrance in before}, {hindrance.kind for hindrance in found}
        for hindrance in found:
            if hindrance.kind not in known:
                self._log.emit("hindrance.began", kind=hindrance.kind, whom=hindrance.whom, what=hindrance.what)
        for hindrance in before:
            if hindrance.kind not in kinds:
                self._log.emit("hindrance.ended", kind=hindrance.kind)
        return found


def say_changes(before: Surroundings, after: Surroundings, log: EventLog) -> None:
    """Say what a look shows that the one before did not; what is as it should be is no news at first."""
    was, now = before.reading, after.reading
    if (_source(was.power), before.low) != (_source(now.power), after.low):
        percent = now.power.percent if now.power else None
        log.emit("machine.power", source=_source(now.power), percent=percent, low=after.low)
    hot, was_hot = now.heat or Heat.NOMINAL, was.heat or Heat.NOMINAL
    if hot is not was_hot:
        log.emit("machine.heat", heat=hot, before=was_hot)
    short, was_short = now.pressure or Pressure.NORMAL, was.pressure or Pressure.NORMAL
    if short is not was_short:
        log.emit("machine.pressure", pressure=short, before=was_short)
    for what, why in now.unanswered:
        if what not in dict(was.unanswered):
            log.emit("machine.unknown", what=what, reason=why)


def _source(power: Power | None) -> str:
    return "battery" if power is not None and power.on_battery else "ac"


def _wall() -> datetime:
    """The clock on the wall, in the zone where the machine is now: a laptop travels."""
    time.tzset()
    return utc_now().astimezone()
