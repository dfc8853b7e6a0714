"""One kept file of tokens on disk: its rows, their index, a manifest of both, and a lock for those who use it."""

from __future__ import annotations

import fcntl
import json
import os
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from qlora_engine.job import durable
from qlora_engine.job.kept_tokens import LOCK
from qlora_engine.training.spool import Spool
from qlora_engine.training.token_key import TokenKey
from qlora_engine.training.token_rows import TOKEN_BYTES, RowIndex, RowWriter, TokenRows

FORMAT = 1  # of the files; what is in them is part of the key
MANIFEST, INDEX, ROWS = "manifest.json", "index.bin", "rows.bin"
READ = 1 << 22  # bytes of one read


class Hold:
    """A shared lock on an entry for as long as this object lives."""

    def __init__(self, entry: Path) -> None:
        descriptor = os.open(entry / LOCK, os.O_RDONLY)
        self._closing = weakref.finalize(self, os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def make(entry: Path) -> Hold:
    """A new folder for an entry, held."""
    entry.mkdir()
    (entry / LOCK).touch()
    return Hold(entry)


def finish(entry: Path, key: TokenKey, rows: RowWriter) -> RowIndex:
    """Write what is missing beside the rows, and force all of it to the disk.

    Raises:
        OSError: the disk takes no more.
    """
    index = rows.index()
    rows.spool.sync()
    if rows.spool.failure is not None:
        raise rows.spool.failure
    check = 0
    with (entry / INDEX).open("wb") as file:
        for part in index.parts():
            file.write(part)
            check = zlib.crc32(part, check)
        file.flush()
        durable.sync_file(file.fileno())
    manifest = {
        "format": FORMAT,
        "rows": len(index),
        "tokens": int(index.starts[-1]),
        "index_crc32": check,
        "made_from": key.as_json(),
    }
    durable.write_json(entry / MANIFEST, manifest)
    return index


def opened(entry: Path, held: Hold, damaged: Callable[[str], NoReturn]) -> TokenRows | None:
    """The rows of an entry; None when its files are not what its manifest says.

    The index is read and checked here, twenty bytes a row; each row is when it is read.

    Raises:
        OSError: a file cannot be read.
    """
    try:
        manifest: dict[str, Any] = json.loads((entry / MANIFEST).read_bytes())
        rows, tokens, check = (int(manifest[name]) for name in ("rows", "tokens", "index_crc32"))
    except (ValueError, TypeError, KeyError):
        return None
    sizes = {INDEX: RowIndex.size(rows), ROWS: TOKEN_BYTES * tokens}
    if manifest.get("format") != FORMAT or any((entry / name).stat().st_size != size for name, size in sizes.items()):
        return None
    if _crc32(entry / INDEX) != check:
        return None
    os.utime(entry / MANIFEST)  # by this time those that are used least are found
    return TokenRows(RowIndex.mapped(entry / INDEX, rows), Spool(entry / ROWS, existing=True), damaged, held)


def in_use(entry: Path) -> bool:
    """Whether a process holds the entry."""
    try:
        descriptor = os.open(entry / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False  # it was never finished, or somebody is deleting it
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def used(entry: Path) -> float:
    """When an entry was used last, seconds since 1970; 0 for one that was never finished."""
    try:
        return (entry / MANIFEST).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def size(entry: Path) -> int:
    """Bytes of an entry's files."""
    total = 0
    for name in (INDEX, ROWS):
        try:
            total += (entry / name).stat().st_size
        except FileNotFoundError:
            continue
    return total


def _crc32(path: Path) -> int:
    check = 0
    with path.open("rb", buffering=0) as file:
        while part := file.read(READ):
            check = zlib.crc32(part, check)
    return check
