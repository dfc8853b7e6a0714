"""Whether the machine runs on its battery, and how much is left in it."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora_engine.host.program import run

SECONDS = 5.0
# `pmset -g batt`: Now drawing from 'AC Power', 'Battery Power' or 'UPS Power'
_SOURCE = re.compile(r"drawing from '([^']+)'")
#  -InternalBattery-0 (id=4653155)	87%; discharging; 5:12 remaining present: true
_CHARGE = re.compile(r"^\s*-.*?\t\s*(\d{1,3})%;", re.MULTILINE)
# Documentation/ABI/testing/sysfs-class-power of Linux: a folder for each supply, a file for each of its properties.
SUPPLIES = Path("/sys/class/power_supply")
_PROPERTIES = ("type", "scope", "present", "online", "status", "capacity", "energy_now", "energy_full")


@dataclass(frozen=True)
class Power:
    """Where the machine's power comes from.

    Attributes:
        on_battery: or on a Mac's UPS, which will end as well.
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
    return from_supplies(SUPPLIES)


def from_pmset(text: str) -> Power | None:
    """Out of what `pmset -g batt` prints; of several batteries the emptiest counts."""
    source = _SOURCE.search(text)
    if source is None:
        return None
    charges = [int(charge) for charge in _CHARGE.findall(text)]
    return Power(source[1] != "AC Power", min(charges, default=None))


def from_supplies(folder: Path) -> Power | None:
    """Out of Linux's folder of power supplies; None where the machine has no battery, for then it is plugged in.

    What has the scope Device feeds a mouse, a pen or a telephone, and says nothing of the machine.
    """
    found = [_properties(supply) for supply in sorted(folder.glob("*"))]
    ours = [supply for supply in found if supply.get("scope") != "Device"]
    batteries = [one for one in ours if one.get("type") == "Battery" and one.get("present") != "0"]
    if not batteries:
        return None
    plugs = [one["online"] for one in ours if one.get("type", "").startswith(("Mains", "USB")) and "online" in one]
    if plugs:
        on_battery = all(online == "0" for online in plugs)  # 1 and, with a programmable USB supply, 2 are plugged in
    else:
        on_battery = any(one.get("status") == "Discharging" for one in batteries)
    return Power(on_battery, _percent(batteries))


def _properties(supply: Path) -> dict[str, str]:
    found = {}
    for name in _PROPERTIES:
        with contextlib.suppress(OSError):  # a supply has not all of them, and may be pulled out meanwhile
            found[name] = (supply / name).read_text(errors="replace").strip()
    return found


def _percent(batteries: Sequence[Mapping[str, str]]) -> int | None:
    """Charge of all together: by their energy, or where one does not tell it, the mean."""
    now, full = (_numbers(batteries, name) for name in ("energy_now", "energy_full"))
    if len(now) == len(full) == len(batteries) and sum(full) > 0:
        return min(100, round(100 * sum(now) / sum(full)))
    capacities = _numbers(batteries, "capacity")
    return min(100, round(sum(capacities) / len(capacities))) if capacities else None


def _numbers(batteries: Sequence[Mapping[str, str]], name: str) -> list[int]:
    return [int(one[name]) for one in batteries if one.get(name, "").isdecimal()]
