"""When power, heat, memory, disk and the hour keep jobs from training: decisions from readings alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from qlora_daemon.surroundings import Reading
from qlora_engine.host.heat import LEVELS, Heat
from qlora_engine.host.power import Power
from qlora_engine.host.pressure import Pressure
from qlora_engine.job.hindrance import Hindrance, Kind, Whom
from qlora_engine.job.hours import Hours
from qlora_engine.job.text import size
from qlora_worker.settings import Settings

PRESSURES = tuple(Pressure)
CHARGED = 10  # percent over the limit from which a low battery is low no more
BELOW_TIMES = 10  # as long as `calm`, where it is only better and not well
RETURNS_TIMES = 10  # an alarm that comes back within so many times `calm` comes back too soon
ROOM_AGAIN = 1.1  # of the reserve, from which on the disk has room again
LAST_SHARE = 0.5  # of the reserve, below which a job that trains stops, too
MOST_DOUBLINGS = 6  # of the wait for one that does


@dataclass(frozen=True)
class Limits:
    """What the settings say.

    Attributes:
        ac_alone: jobs that say nothing wait while the machine runs on battery.
        low_battery: percent; 0 for never.
        heat, pressure: from this level on jobs stop; None for never.
        calm: seconds for which heat and pressure must have been well again.
        hours: in which training may run.
        reserve: bytes of the disk that jobs leave free; 0 for none.
    """

    ac_alone: bool = False
    low_battery: int = 20
    heat: Heat | None = Heat.CRITICAL
    pressure: Pressure | None = Pressure.CRITICAL
    calm: float = 60.0
    hours: Hours = field(default_factory=Hours)
    reserve: int = 5_000_000_000

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """From the settings as they were read."""
        return cls(
            ac_alone=settings.power == "ac",
            low_battery=settings.low_battery,
            heat=None if settings.heat == "off" else Heat(settings.heat),
            pressure=None if settings.pressure == "off" else Pressure(settings.pressure),
            calm=settings.calm_seconds,
            hours=Hours.of(settings.training_hours),
            reserve=int(1e9 * settings.disk_reserve_gb),
        )


@dataclass(frozen=True)
class Alarm:
    """Whether something is too much: at once when it is, and until it has been well for some time.

    Training is often itself what makes it too much. So an alarm that comes back soon is kept up twice as long each
    time.

    Attributes:
        on: it is, or was a moment ago.
        well, below: since when it is well, or at least below the limit; monotonic, seconds.
        ended: when it was last called off.
        returns: how often in a row it came back too soon.
    """

    on: bool = False
    well: float | None = None
    below: float | None = None
    ended: float | None = None
    returns: int = 0

    def next(self, *, over: bool, well: bool, now: float, calm: float) -> Alarm:
        """What it is after another look.

        Args:
            over: at or over the limit.
            well: as it should be; between the two it is better and not well.
            now: monotonic, seconds.
            calm: seconds.
        """
        if over:
            soon = self.ended is not None and now - self.ended < RETURNS_TIMES * calm
            returns = self.returns if self.on else self.returns + 1 if soon else 0
            return Alarm(on=True, returns=min(returns, MOST_DOUBLINGS))
        if not self.on:
            return self
        below = self.below if self.below is not None else now
        since = (self.well if self.well is not None else now) if well else None
        wait = calm * 2**self.returns
        if (since is not None and now - since >= wait) or now - below >= BELOW_TIMES * wait:
            return Alarm(ended=now, returns=self.returns)
        return replace(self, well=since, below=below)


@dataclass(frozen=True)
class Surroundings:
    """What is known of the machine, and what was too much."""

    reading: Reading = field(default_factory=Reading)
    low: bool = False
    heat: Alarm = field(default_factory=Alarm)
    pressure: Alarm = field(default_factory=Alarm)
    full: bool = False

    def next(self, reading: Reading, limits: Limits, now: float) -> Surroundings:
        """What is known after another look; what a system does not tell is well.

        Args:
            now: monotonic, seconds.
        """
        hot = LEVELS.index(reading.heat or Heat.NOMINAL)
        short = PRESSURES.index(reading.pressure or Pressure.NORMAL)
        return Surroundings(
            reading,
            _is_low(reading.power, limits.low_battery, was=self.low),
            self.heat.next(
                over=limits.heat is not None and hot >= LEVELS.index(limits.heat),
                well=hot < LEVELS.index(Heat.HEAVY),
                now=now,
                calm=limits.calm,
            ),
            self.pressure.next(
                over=limits.pressure is not None and short >= PRESSURES.index(limits.pressure),
                well=short == 0,
                now=now,
                calm=limits.calm,
            ),
            _is_full(reading.free, limits.reserve, was=self.full),
        )

    def hindrances(self, limits: Limits, wall: datetime) -> tuple[Hindrance, ...]:
        """What keeps jobs from training now, first what lasts longest.

        Args:
            wall: local time.
        """
        found: list[Hindrance] = []
        if (opens := limits.hours.next_opening(wall)) is not None:
            found.append(Hindrance(Kind.HOURS, Whom.NOT_URGENT, _outside(opens, wall)))
        if self.reading.power is not None and self.reading.power.on_battery:
            whom = Whom.NOT_ANY if limits.ac_alone else Whom.ON_AC
            found.append(Hindrance(Kind.BATTERY, whom, "the machine runs on battery"))
        if self.low:
            found.append(Hindrance(Kind.LOW_BATTERY, Whom.ALL, f"the battery is low ({limits.low_battery}% or less)"))
        if self.heat.on:
            found.append(Hindrance(Kind.HEAT, Whom.ALL, "the machine is too hot"))
        if self.pressure.on:
            found.append(Hindrance(Kind.PRESSURE, Whom.ALL, "the machine is short of memory"))
        if self.full and self.reading.free is not None:
            found.append(_no_room(self.reading.free, limits.reserve))
        return tuple(found)


def _is_low(power: Power | None, limit: int, *, was: bool) -> bool:
    if power is None or not power.on_battery or power.percent is None or limit == 0:
        return False
    return power.percent <= limit or (was and power.percent < limit + CHARGED)


def _is_full(free: int | None, reserve: int, *, was: bool) -> bool:
    return free is not None and free < reserve * (ROOM_AGAIN if was else 1)


def _no_room(free: int, reserve: int) -> Hindrance:
    """A job that trains has the reserve for its checkpoints. It stops while there is still room for the last."""
    whom = Whom.ALL if free < reserve * LAST_SHARE else Whom.WAITING
    enough = size(reserve * ROOM_AGAIN)
    return Hindrance(Kind.DISK, whom, f"the disk has {size(free)} free, and jobs wait until {enough} are")


def _outside(opens: datetime, wall: datetime) -> str:
    far = opens - wall.replace(tzinfo=None) >= timedelta(days=1)
    return f"it is outside the training hours, which begin at {opens:{'%a %H:%M' if far else '%H:%M'}}"
