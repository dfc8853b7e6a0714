"""Whether a process still has a file open for writing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import psutil

_WRITING = os.O_WRONLY | os.O_RDWR
_PROC = Path("/proc")


def is_being_written(paths: Iterable[Path]) -> bool:
    """Whether a process of this user has one of the files open for writing.

    Where the system does not tell how a file is open (macOS), any process that has it open counts.
    """
    wanted = {str(path) for path in paths}
    if (_PROC / "self" / "fdinfo").is_dir():
        return _by_proc(wanted)
    for process in psutil.process_iter():
        # Processes end while we look, and those of other users do not let us.
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and any(file.path in wanted for file in process.open_files()):
                return True
    return False


def _by_proc(wanted: set[str]) -> bool:
    for process in _PROC.iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                if str(descriptor.readlink()) in wanted and _flags(process, descriptor.name) & _WRITING:
                    return True
    return False


def _flags(process: Path, descriptor: str) -> int:
    for line in (process / "fdinfo" / descriptor).read_text().splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8)
    return 0
