"""Whether a process has ended, down to its last thread."""

from __future__ import annotations

import psutil


def has_ended(process: psutil.Process) -> bool:
    """Whether nothing of it runs any more; it may still wait to be collected.

    A process of which the main thread has ended is a zombie while others still end, and holds its files and locks
    until the last of them has.
    """
    try:
        return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
    except psutil.Error:
        return True
