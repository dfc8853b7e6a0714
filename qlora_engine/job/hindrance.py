"""What keeps jobs from training although it is their turn: power, heat, memory, disk, the hour; and which jobs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, Self

from qlora_engine.job.lock import holder_of

if TYPE_CHECKING:
    from qlora_engine.job.folder import Home


class Kind(StrEnum):
    """What it is."""

    BATTERY = "battery"
    LOW_BATTERY = "low_battery"
    HEAT = "heat"
    PRESSURE = "pressure"
    HOURS = "hours"
    DISK = "disk"


class Whom(StrEnum):
    """Which jobs it keeps from training."""

    ALL = "all"
    WAITING = "waiting"  # those that do not train yet; one that does goes on
    NOT_URGENT = "not_urgent"
    ON_AC = "on_ac"  # those that say `power: ac`
    NOT_ANY = "not_any"  # those, and those that say nothing


class Wishes(Protocol):
    """The part of a job's record that decides."""

    @property
    def urgent(self) -> bool:
        """It goes before all others."""

    @property
    def power(self) -> str | None:
        """`any`, `ac`, or None where the job leaves it to the setting."""


@dataclass(frozen=True)
class Hindrance:
    """One thing that keeps jobs from training now.

    Attributes:
        kind: what it is.
        whom: which jobs it concerns.
        what: for a person, without a full stop.
    """

    kind: Kind
    whom: Whom
    what: str

    def concerns(self, job: Wishes) -> bool:
        """Whether it keeps this job from starting; see `stops_what_trains` for one that has."""
        match self.whom:
            case Whom.ALL | Whom.WAITING:
                return True
            case Whom.NOT_URGENT:
                return not job.urgent
            case Whom.ON_AC:
                return job.power == "ac"
            case Whom.NOT_ANY:
                return job.power != "any"

    @property
    def stops_what_trains(self) -> bool:
        """Whether a job that it concerns must stop, and not only wait if it has not started."""
        return self.whom is not Whom.WAITING

    @classmethod
    def of(cls, value: dict[str, Any]) -> Self:
        """From JSON. Raises `ValueError`, `KeyError` or `TypeError` if it is none."""
        return cls(Kind(value["kind"]), Whom(value["whom"]), str(value["what"]))


def hindering(job: Wishes, hindrances: Iterable[Hindrance]) -> Hindrance | None:
    """The first of them that keeps this job from training."""
    return next((hindrance for hindrance in hindrances if hindrance.concerns(job)), None)


def hindrances_in(home: Home) -> tuple[Hindrance, ...]:
    """Those that the home's daemon sees; none where none runs, or where it cannot be told.

    Read without pydantic: loading that takes longer than `qlora ls` may.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        daemon = holder_of(home.daemon_lock)
        status = json.loads(home.status.read_bytes())
        if daemon is not None and status["pid"] == daemon.get("pid"):
            return tuple(map(Hindrance.of, status["hindrances"]))
    return ()
