"""Whether the machine runs on its battery, and how much is left in it."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass

import psutil

from qlora_engine.host.program import run

SECONDS = 5.0
# `pmset -g batt`: Now drawing from 'AC Power', 'Battery Power' or 'UPS Power'
_SOURCE = re.compile(r"drawing from '([^']+)'")
#  -InternalBattery-0 (id=4653155)	87%; discharging; 5:12 remaining present: true
_CHARGE = re.compile(r"^\s*-.*?\t\s*(\d{1,3})%;", re.MULTILINE)


@dataclass(frozen=True)
class Power:
    """Where the machine's power comes from.

    Attributes:
        on_battery: or on a UPS, which will end as well.
        percent: charge of the battery, 0 to 100; None where there is none.
    """

    on_battery: bool
    percent: int | None = None


def power() -> Power | None:
    """The source now; None where the system does not tell, as on most machines without a battery.

    Raises:
        ProgramFailed: macOS's pmset does not answer.
    """
    if shutil.which("pmset"):
        return from_pmset(run(["pmset", "-g", "batt"], timeout=SECONDS).out)
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if battery is None:
        return None
    return Power(battery.power_plugged is False, round(battery.percent))


def from_pmset(text: str) -> Power | None:
    """Out of what `pmset -g batt` prints; of several batteries the emptiest counts."""
    source = _SOURCE.search(text)
    if source is None:
        return None
    charges = [int(charge) for charge in _CHARGE.findall(text)]
    return Power(source[1] != "AC Power", min(charges, default=None))
