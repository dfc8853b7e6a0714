"""Many small folders forced to the disk at the price of one: a batch of jobs shares its syncs."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from qlora_engine.job.durable import sync_file, sync_folder

FEW = 3  # folders: up to here their own syncs cost less than whatever else the file system has to write


def sync_folders(folders: Sequence[Path]) -> None:
    """Force folders of one file system, and the files that lie directly in them, to the disk.

    Raises:
        OSError: something of it could not be written, so none of it counts as written.
    """
    if len(folders) > FEW and (syncfs := _syncfs()) is not None:
        _with_descriptor(folders[0], syncfs)
        return
    newest: Path | None = None
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.is_file():
                _with_descriptor(path, os.fsync)
                newest = path
        sync_folder(folder)
    if newest is not None and sys.platform == "darwin":
        # The drive has all of it by now, in its cache, which one call empties as a whole (F_FULLFSYNC in fcntl(2)).
        _with_descriptor(newest, sync_file)


def write_new(path: Path, content: bytes) -> None:
    """Make a file in a folder that nobody sees yet; `sync_folders` makes it durable.

    Raises:
        OSError: the disk is full, or the file is there.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)


def _with_descriptor(path: Path, action: Callable[[int], None]) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        action(descriptor)
    finally:
        os.close(descriptor)


@cache
def _syncfs() -> Callable[[int], None] | None:
    """Linux's syncfs(2), which Python does not offer: all of a file system in one call, its errors reported."""
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if function is None:
        return None

    def syncfs(descriptor: int) -> None:
        if function(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return syncfs
