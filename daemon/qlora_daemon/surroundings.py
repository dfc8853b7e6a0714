"""Power, heat, memory and disk of the machine: what was read, and the thread that reads it while it matters."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from qlora_engine.host.heat import Heat, heat
from qlora_engine.host.power import Power, power
from qlora_engine.host.pressure import Pressure, memory_pressure
from qlora_engine.job.errors import ProgramFailed

T = TypeVar("T")
BELIEVED = 3  # looks in a row without an answer for which the last one counts


@dataclass(frozen=True)
class Reading:
    """One look. None where the system does not tell, or has not answered for some time.

    Attributes:
        unanswered: by what was asked for, why there was no answer.
        free: bytes of the disk that the runs lie on.
    """

    power: Power | None = None
    heat: Heat | None = None
    pressure: Pressure | None = None
    unanswered: tuple[tuple[str, str], ...] = ()
    free: int | None = None


def read(runs: Path | None = None) -> Reading:
    """Ask the system. Takes milliseconds, or some seconds where its programs hang.

    Args:
        runs: a folder on the disk whose room counts.
    """
    problems: list[tuple[str, str]] = []

    def asked(name: str, ask: Callable[[], T | None]) -> T | None:
        try:
            return ask()
        except (ProgramFailed, OSError) as error:
            problems.append((name, error.what if isinstance(error, ProgramFailed) else str(error)))
            return None

    found = Reading(asked("power", power), asked("heat", heat), asked("pressure", memory_pressure))
    if runs is not None:
        found = replace(found, free=asked("free", lambda: shutil.disk_usage(runs).free))
    return replace(found, unanswered=tuple(problems))


class LastKnown:
    """Fills in what a look did not answer from the looks before, for a while."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, int]] = {}

    def fill(self, found: Reading) -> Reading:
        """The reading with what was known until lately."""
        missing = dict(found.unanswered)
        filled: dict[str, Any] = {}
        for name in ("power", "heat", "pressure", "free"):
            if name not in missing:
                self._known[name] = (getattr(found, name), 0)
                continue
            value, looks = self._known.get(name, (None, BELIEVED))
            if looks < BELIEVED:
                filled[name] = value
                self._known[name] = (value, looks + 1)
        return replace(found, **filled)


class Lookout(threading.Thread):
    """Looks every so often while somebody cares, and at once when told to; sleeps otherwise.

    In a thread of its own, since the owner must never wait for a program of the system.

    Args:
        tell: receives each reading.
        every: seconds between two looks.
        runs: a folder on the disk whose room counts.
    """

    def __init__(self, tell: Callable[[Reading], None], every: float, runs: Path | None = None) -> None:
        super().__init__(name="lookout", daemon=True)
        self._tell, self._every, self._runs = tell, every, runs
        self._wake = threading.Condition()
        self._cares = self._at_once = self._stopped = False

    def care(self, cares: bool) -> None:
        """Whether to look; the first look follows at once."""
        with self._wake:
            self._at_once = cares
            self._cares = cares
            self._wake.notify()

    def stop(self) -> None:
        """Look no more."""
        with self._wake:
            self._stopped = True
            self._wake.notify()

    def run(self) -> None:
        """Look, tell, wait."""
        last = LastKnown()
        while self._is_due():
            self._tell(last.fill(read(self._runs)))

    def _is_due(self) -> bool:
        """Wait for the next look; False in the end."""
        with self._wake:
            if self._cares and not self._at_once:
                self._wake.wait_for(lambda: self._stopped or self._at_once or not self._cares, self._every)
            self._wake.wait_for(lambda: self._stopped or self._cares)
            self._at_once = False
            return not self._stopped
