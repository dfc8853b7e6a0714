"""Which start of the machine this is, so that a job that was running when the machine went down is known."""

from __future__ import annotations

import re
from pathlib import Path

from qlora_engine.host.sysctl import sysctl

LINUX = Path("/proc/sys/kernel/random/boot_id")
_UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_SECONDS = re.compile(r"\bsec = (\d+)")


def boot_id() -> str | None:
    """A name that stays the same until the machine starts again; None where the system does not tell."""
    try:
        return from_uuid(LINUX.read_text())
    except OSError:
        return from_uuid(sysctl("kern.bootsessionuuid") or "") or from_boottime(sysctl("kern.boottime") or "")


def from_uuid(text: str) -> str | None:
    """Out of Linux's `boot_id` and of macOS's `kern.bootsessionuuid`: a UUID made at each start."""
    found = _UUID.search(text)
    return found[0].lower() if found else None


def from_boottime(text: str) -> str | None:
    """Out of `kern.boottime`: `{ sec = 1763880000, usec = 123456 } Sun Nov 23 06:40:00 2025`.

    It moves when the clock is set, so it is asked only where there is no UUID, and its seconds are rounded.
    """
    found = _SECONDS.search(text)
    return f"boot-{round(int(found[1]), -2)}" if found else None
