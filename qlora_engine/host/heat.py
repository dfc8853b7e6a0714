"""How much the machine slows itself down since it is hot."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from qlora_engine.host.program import run

SECONDS = 5.0
# What NSProcessInfo's thermalState is made of. <libkern/OSThermalNotification.h>, macOS: nominal, moderate, heavy,
# trapping, sleeping are 0 to 4. On Apple silicon `pmset -g therm` says next to nothing, this does.
PRESSURE = "com.apple.system.thermalpressurelevel"
# `pmset -g therm`: a note in place of each thing that was not recorded since the start of the machine.
_WARNING = re.compile(r"^\s*Thermal Warning Level\s*=\s*(\d+)", re.MULTILINE | re.IGNORECASE)
_SPEED = re.compile(r"^\s*CPU_Speed_Limit\s*=\s*(\d+)", re.MULTILINE)
DANGER, CRISIS = 5, 10  # <IOKit/pwr_mgt/IOPM.h>: kIOPMThermalLevelDanger, kIOPMThermalLevelCrisis
SLOW, SLOWEST = 70, 40  # percent of its speed that an Intel processor is held to
# Linux's Documentation/hwmon/sysfs-interface.rst and driver-api/thermal/sysfs-api.rst; thousandths of °C.
SENSORS, ZONES = Path("/sys/class/hwmon"), Path("/sys/class/thermal")
USUAL = range(50, 130)  # °C; limits of sensors outside are placeholders


class Heat(StrEnum):
    """How hot the machine is by its own judgement.

    Attributes:
        NOMINAL: as it should be.
        RAISED: the fans are loud.
        HEAVY: it computes more slowly.
        CRITICAL: it is about to put itself to sleep.
    """

    NOMINAL = "nominal"
    RAISED = "raised"
    HEAVY = "heavy"
    CRITICAL = "critical"


LEVELS = tuple(Heat)


def heat() -> Heat | None:
    """The heat now; None where the system does not tell.

    Raises:
        ProgramFailed: one of macOS's programs does not answer.
    """
    if shutil.which("pmset"):
        found = [from_pmset(run(["pmset", "-g", "therm"], timeout=SECONDS).out)]
        if shutil.which("notifyutil"):
            found.append(from_notifyutil(run(["notifyutil", "-g", PRESSURE], timeout=SECONDS).out))
        return worst(found)
    return worst(_sensors())


def worst(found: Iterable[Heat | None]) -> Heat | None:
    """The worst of those that are known."""
    return max((level for level in found if level is not None), key=LEVELS.index, default=None)


def from_pmset(text: str) -> Heat | None:
    """Out of what `pmset -g therm` prints: a warning level, and on Intel a limit of speed in percent."""
    if "warning level" not in text.lower() and "CPU" not in text:
        return None
    warning, speed = _WARNING.search(text), _SPEED.search(text)
    level, limit = int(warning[1]) if warning else 0, int(speed[1]) if speed else 100
    if level >= CRISIS or limit < SLOWEST:
        return Heat.CRITICAL
    if level >= DANGER or limit < SLOW:
        return Heat.HEAVY
    return Heat.RAISED if level > 0 or limit < 100 else Heat.NOMINAL


def from_notifyutil(text: str) -> Heat | None:
    """Out of what `notifyutil -g` prints: the name and the level."""
    name, _, level = text.strip().rpartition(" ")
    if name != PRESSURE or not level.isdigit():
        return None
    return LEVELS[min(int(level), len(LEVELS) - 1)]


def from_sensor(now: float, high: float | None, critical: float | None) -> Heat | None:
    """Out of one of Linux's sensors, °C; None where its limits are not plausible."""
    limits = [limit if limit is not None and int(limit) in USUAL else None for limit in (high, critical)]
    if limits == [None, None]:
        return None
    high, critical = limits
    if critical is not None and now >= critical:
        return Heat.CRITICAL
    return Heat.HEAVY if high is not None and now >= high else Heat.NOMINAL


def from_hwmon(folder: Path) -> Iterable[Heat | None]:
    """Out of Linux's folder of sensors, for each of them.

    psutil reads the same, but fills in for a critical limit that is missing the high one, above which a board's
    unconnected input may well lie for ever.
    """
    for sensor in (*folder.glob("hwmon*/temp*_input"), *folder.glob("hwmon*/device/temp*_input")):
        now = _degrees(sensor)
        if now is not None:
            limits = (sensor.with_name(sensor.name.replace("_input", end)) for end in ("_max", "_crit"))
            yield from_sensor(now, *map(_degrees, limits))


def from_zones(folder: Path) -> Iterable[Heat | None]:
    """Out of Linux's folder of thermal zones, for those that say at which temperature the machine turns itself off."""
    for trip in folder.glob("thermal_zone*/trip_point_*_type"):
        now = _degrees(trip.with_name("temp"))
        if now is not None and _text(trip) == "critical":
            yield from_sensor(now, None, _degrees(trip.with_name(trip.name.replace("_type", "_temp"))))


def _sensors() -> Iterable[Heat | None]:
    return list(from_hwmon(SENSORS)) or from_zones(ZONES)


def _degrees(file: Path) -> float | None:
    try:
        return int(_text(file)) / 1000
    except ValueError:
        return None


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:  # a sensor has not all of the files, and some answer only while their device is awake
        return ""
