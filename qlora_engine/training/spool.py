"""Bytes that grow at their end and are read anywhere: in a file, or in memory where the disk takes none."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path

from qlora_engine.job.durable import sync_file

CHUNK = 1 << 20  # bytes between two writes
READ = 1 << 26  # bytes of one read; the system takes no more than 2 GB at once


class Spool:
    """Bytes that are appended to a file; without one, or from when its disk takes no more, they are in memory.

    Reading is by `pread`: a mapping of the file would count as memory of this process, in the end all of it, and a
    disk that fails under a mapping ends the process without a word.

    Args:
        path: of the file; None for memory.
        existing: it is only read.
        failure: why there is no file.

    Attributes:
        failure: why the file was given up; None while it is used.
    """

    def __init__(self, path: Path | None, *, existing: bool = False, failure: OSError | None = None) -> None:
        self.failure = failure
        self._memory = bytearray()  # without a file all bytes, with one those not yet written
        self._file, self._written = -1, 0
        if path is not None:
            flags = os.O_RDONLY if existing else os.O_RDWR | os.O_CREAT | os.O_EXCL
            self._file = os.open(path, flags, 0o644)
            self._closing = weakref.finalize(self, os.close, self._file)

    def append(self, part: bytes) -> None:
        """Add bytes to the end."""
        self._memory += part
        if self._file >= 0 and len(self._memory) >= CHUNK:
            self._flush(lambda: None)

    def sync(self) -> None:
        """Force what there is to the disk."""
        if self._file >= 0:
            self._flush(lambda: sync_file(self._file))

    def _flush(self, then: Callable[[], None]) -> None:
        try:
            while self._memory:
                size = os.write(self._file, self._memory)
                self._written += size
                del self._memory[:size]
            then()
        except OSError as error:
            self.give_up_file(error)

    def give_up_file(self, why: OSError) -> None:
        """Hold all bytes in memory from now on.

        Raises:
            OSError: what is in the file cannot be read.
        """
        if self._file < 0:
            return
        kept = bytearray()
        while len(kept) < self._written:
            part = os.pread(self._file, min(READ, self._written - len(kept)), len(kept))
            if not part:
                raise why
            kept += part
        self.failure, self._memory, self._file = why, kept + self._memory, -1
        self._closing()

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from a place on; fewer when it ends before.

        Raises:
            OSError: the disk cannot read them.
        """
        if self._file < 0:
            return bytes(memoryview(self._memory)[offset : offset + size])
        return os.pread(self._file, size, offset)
