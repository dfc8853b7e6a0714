"""Writing files so that a crash leaves the old content or the new, never a part of either."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"


def sync_file(descriptor: int) -> None:
    """Force a file's content to the disk.

    On macOS `fsync` only reaches the drive's cache; `F_FULLFSYNC` empties that too (fsync(2)).
    """
    if sys.platform == "darwin":
        import fcntl  # noqa: PLC0415  # the constant exists on macOS alone

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_contents(folder: Path, synced: Callable[[], None] = lambda: None) -> None:
    """Force the files of a folder to the disk, and the folder itself.

    Args:
        folder: holds files alone.
        synced: is called after each, which may have taken minutes.
    """
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            sync_file(descriptor)
        finally:
            os.close(descriptor)
        synced()
    sync_folder(folder)


def write_bytes(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `content` atomically and durably.

    Raises:
        OSError: the disk is full or read-only; `path` is then as it was.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            sync_file(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """`write_bytes` for one JSON object, indented, with a final newline."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # A file name that is not UTF-8 holds lone surrogates, which JSON can write as escapes and UTF-8 cannot.
    write_bytes(path, text.encode(errors="backslashreplace"))


def move(source: Path, target: Path) -> None:
    """Rename within one file system and make both folders' entries durable."""
    source.rename(target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


class AppendOnly:
    """A file of lines that several processes may append to.

    Every line is one `write` on a descriptor opened with O_APPEND: the system writes it whole before it lets in
    another, so lines of two writers never mix. A crash or a full disk can leave a line without its end, and
    what comes next stands on the same line. Only the one who wrote that can tell, for the end of a file that
    another writer is just extending looks the same; it writes its line again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write_line(self, line: str) -> None:
        """Append `line` and a newline in one write.

        Raises:
            OSError: the disk is full; a part of the line may be there, which no reader takes for a line.
        """
        content = line.encode() + b"\n"
        if not self._append(content):
            self._append(content)

    def _append(self, content: bytes) -> bool:
        """Write at the end; False if that was in the middle of a line."""
        if os.write(self._descriptor, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        start = os.lseek(self._descriptor, 0, os.SEEK_CUR) - len(content)
        return start == 0 or os.pread(self._descriptor, 1, start - 1) == b"\n"

    def sync(self) -> None:
        """Force what was appended to the disk."""
        sync_file(self._descriptor)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
