"""How short of memory the machine is, in the words that macOS has for it."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

from qlora_engine.host.sysctl import sysctl

# `man 3 dispatch_source_create`: DISPATCH_MEMORYPRESSURE_NORMAL, _WARN and _CRITICAL are 1, 2 and 4.
MACOS = "kern.memorystatus_vm_pressure_level"
STALLED = Path("/proc/pressure/memory")  # https://docs.kernel.org/accounting/psi.html
AVAILABLE = Path("/proc/meminfo")
# Share of the last ten seconds in which every process waited for memory, percent; systemd-oomd kills from 60 on.
STALLED_CRITICAL, STALLED_WARNING = 40.0, 10.0
# Share of the memory that a new program could have, percent; earlyoom kills below 10.
AVAILABLE_CRITICAL, AVAILABLE_WARNING = 3.0, 10.0
_FULL = re.compile(r"^full avg10=(\d+\.\d+)", re.MULTILINE)
_KILOBYTES = re.compile(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", re.MULTILINE)


class Pressure(StrEnum):
    """How short of memory the machine is.

    At `WARNING` macOS compresses memory and asks programs for some of theirs, at `CRITICAL` it swaps, and ends some.
    """

    NORMAL = "normal"
    WARNING = "warning"
    CRITICAL = "critical"


def memory_pressure() -> Pressure | None:
    """The pressure now; None where the system does not tell."""
    if (level := sysctl(MACOS)) is not None:
        return from_level(level)
    return from_linux(_text(STALLED), _text(AVAILABLE))


def from_level(text: str) -> Pressure | None:
    """Out of the level that macOS counts as 1, 2 or 4."""
    return {"1": Pressure.NORMAL, "2": Pressure.WARNING, "4": Pressure.CRITICAL}.get(text.strip())


def from_linux(stalled: str, available: str) -> Pressure | None:
    """Out of the time lost in waiting for memory and of what is left of it; the worse of the two.

    Args:
        stalled: `/proc/pressure/memory`; nothing where the kernel was built without it.
        available: `/proc/meminfo`.
    """
    sizes = {name: int(size) for name, size in _KILOBYTES.findall(available)}
    full = _FULL.search(stalled)
    if full is None and len(sizes) < 2:
        return None
    lost = float(full[1]) if full else 0.0
    left = 100.0 * sizes["MemAvailable"] / sizes["MemTotal"] if len(sizes) == 2 else 100.0
    if lost >= STALLED_CRITICAL or left < AVAILABLE_CRITICAL:
        return Pressure.CRITICAL
    return Pressure.WARNING if lost >= STALLED_WARNING or left < AVAILABLE_WARNING else Pressure.NORMAL


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
