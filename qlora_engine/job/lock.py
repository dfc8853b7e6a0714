"""A lock between processes that names its holder and cannot outlive it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class LockHeld(Exception):
    """Another process holds the lock; `holder` is what it said of itself (empty if it has not yet)."""

    def __init__(self, path: Path, holder: dict[str, Any]) -> None:
        super().__init__(path, holder)
        self.path, self.holder = path, holder

    def __str__(self) -> str:
        process = f"process {self.holder['pid']}" if "pid" in self.holder else ""
        who = " of ".join(filter(None, (process, str(self.holder.get("job", "")))))
        return f"{self.path} is held by {who or 'a process that has not named itself'}"


class HeldLock:
    """A `flock` that this process holds until `release`, or until it ends in whatever way."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def name_holder(self, holder: dict[str, Any]) -> None:
        """Say who holds the lock, for whoever finds it taken."""
        content = json.dumps(holder).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)

    @property
    def descriptor(self) -> int:
        """For `pass_fds`: a child that has it holds the lock too, for as long as it lives."""
        return self._descriptor

    def release(self) -> None:
        """Let the lock go. Twice is once."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def acquire(path: Path, holder: dict[str, Any], *, wait: float = 0.0) -> HeldLock:
    """Take the lock at `path`, or raise `LockHeld` when it is not free within `wait` seconds.

    The file is never deleted by us. Should somebody else delete it, a lock on the deleted file is worth
    nothing, so the inode is compared after locking and the lock taken again on the new file.

    Raises:
        LockHeld: with what the holder said of itself.
        OSError: the folder cannot be made or written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    deadline = time.monotonic() + wait
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found = _read_holder(descriptor)
            os.close(descriptor)
            if time.monotonic() >= deadline:
                raise LockHeld(path, found) from None
            time.sleep(0.05)  # flock has no wait with a time limit
            continue
        except BaseException:
            os.close(descriptor)
            raise
        if _same_file(descriptor, path):
            lock = HeldLock(path, descriptor)
            lock.name_holder(holder)
            return lock
        os.close(descriptor)


def holder_of(path: Path) -> dict[str, Any] | None:
    """What the holder says of itself, `{}` if it has not yet, or None when the lock is free.

    The test takes the lock for an instant, so a process that takes it must allow itself a short wait.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # all that a read-only disk allows
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that test do not meet each other
    except BlockingIOError:
        return _read_holder(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(path: Path, holder: dict[str, Any], *, wait: float = 0.0) -> Iterator[HeldLock]:
    """`acquire` as a context."""
    lock = acquire(path, holder, wait=wait)
    try:
        yield lock
    finally:
        lock.release()


def _read_holder(descriptor: int) -> dict[str, Any]:
    try:
        value = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
    except ValueError:
        return {}  # read between its truncation and its write
    return value if isinstance(value, dict) else {}


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        on_disk = path.stat()
    except FileNotFoundError:
        return False
    ours = os.fstat(descriptor)
    return (ours.st_dev, ours.st_ino) == (on_disk.st_dev, on_disk.st_ino)
