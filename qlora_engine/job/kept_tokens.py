"""The folder of kept tokens, for those who only make room in it: what is in use, and how the rest is taken out."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from qlora_engine.job import durable, lock

LOCK = "lock"  # in the folder, held for moments; in each entry, shared by those who use it
LOCK_SECONDS = 10.0  # to wait for others, who take milliseconds


def unused(folder: Path) -> list[Path]:
    """The entries that no process uses now.

    Raises:
        OSError: the folder cannot be read.
    """
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not _in_use(entry))


def take_out(folder: Path) -> list[Path]:
    """Give every entry that no process uses a name that none looks for; where each lies now, to be deleted.

    Raises:
        LockHeld: another process keeps the folder busy.
        OSError: it cannot be written.
    """
    if not folder.is_dir():
        return []
    with lock.held(folder / LOCK, {"pid": os.getpid()}, wait=LOCK_SECONDS):
        return [entry.rename(folder / f"{durable.TEMPORARY}{secrets.token_hex(8)}") for entry in unused(folder)]


def _in_use(entry: Path) -> bool:
    if not (entry / LOCK).exists():
        return False  # it was never finished, or is being deleted
    try:
        lock.acquire(entry / LOCK, {"pid": os.getpid()}).release()
    except lock.LockHeld:
        return True
    return False
