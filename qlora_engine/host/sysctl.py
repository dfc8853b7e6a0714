"""What the kernel says of itself by name: `sysctl -n`, of macOS and others."""

from __future__ import annotations

import shutil

from qlora_engine.host.program import run
from qlora_engine.job.errors import ProgramFailed

SECONDS = 5.0
USUAL = "/usr/sbin/sysctl"  # on macOS; a PATH of launchd's or cron's making may lack that folder


def sysctl(name: str) -> str | None:
    """The value of a name such as `hw.memsize`, without the line's end.

    None where there is no such program, it knows no such name, says nothing, or does not answer within `SECONDS`.
    """
    try:
        finished = run([shutil.which("sysctl") or USUAL, "-n", name], timeout=SECONDS)
    except ProgramFailed:
        return None
    return finished.out.strip() or None if finished.code == 0 else None
