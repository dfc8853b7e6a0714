"""Which files a process still has open for writing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

_WRITING = os.O_WRONLY | os.O_RDWR
_PROC = Path("/proc")


def being_written(paths: Iterable[Path]) -> set[Path]:
    """Those of the files that a process of this user has open for writing.

    Looking at every process takes milliseconds, so ask once for many files. Where the system does not tell how a
    file is open (macOS), any process that has it open counts.
    """
    wanted = {str(path) for path in paths}
    if not wanted:
        return set()
    if (_PROC / "self" / "fdinfo").is_dir():
        return {Path(name) for name in _by_proc(wanted)}
    found: set[Path] = set()
    for process in psutil.process_iter():
        # Processes end while we look, and those of other users do not let us.
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid():
                found.update(Path(file.path) for file in process.open_files() if file.path in wanted)
    return found


def _by_proc(wanted: set[str]) -> Iterator[str]:
    for process in _PROC.iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                name = str(descriptor.readlink())
                if name in wanted and _flags(process, descriptor.name) & _WRITING:
                    yield name


def _flags(process: Path, descriptor: str) -> int:
    for line in (process / "fdinfo" / descriptor).read_text().splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8)
    return 0
