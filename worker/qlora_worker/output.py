"""Keeps what a training process prints from filling the disk: of too much only the end stays."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

MOST_BYTES = 20_000_000  # of a run's output.log, over all its attempts
KEPT_BYTES = 1_000_000
CUT = b"[what was printed before was cut off]\n"


def keep_short(path: Path) -> None:
    """Cut the head off a file that has grown too long, also while a process appends to it.

    The process writes at the end, wherever that is (O_APPEND), so it need not know. What it prints in the instant
    between reading the end and cutting is lost.
    """
    with contextlib.suppress(OSError):  # removed by somebody, or no room for the end: neither may harm training
        if path.stat().st_size <= MOST_BYTES:
            return
        with path.open("r+b") as file:
            file.seek(-KEPT_BYTES, os.SEEK_END)
            end = file.read(KEPT_BYTES)
            file.truncate(0)
        with path.open("ab") as file:
            file.write(CUT + end)
