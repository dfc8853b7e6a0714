"""Where the daemon's events go: the service log, rotated in process, and short lines on a terminal."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from qlora_engine.job.durable import AppendOnly
from qlora_engine.job.events import Event, Sink, to_line
from qlora_engine.job.text import local_time, plain
from qlora_engine.job.vocabulary import EVENTS
from qlora_engine.job.wording import describe

OUTPUT_BYTES = 1_000_000


class RotatingLog:
    """A sink that appends events to a file and starts a new one when it is full.

    Args:
        path: the newest file; older ones are `path.1`, `path.2` and so on.
        max_bytes: size at which a new file is begun.
        keep: how many older files stay.
    """

    def __init__(self, path: Path, *, max_bytes: int, keep: int) -> None:
        self._path, self._max_bytes, self._keep = path, max_bytes, keep
        self._file = AppendOnly(path)
        self._size = path.stat().st_size

    def __call__(self, event: Event) -> None:
        """Append one event. The service goes on without its log: a full disk must not end it."""
        with unless_disk_refuses(self._path):
            self._append(to_line(event))

    def _append(self, line: str) -> None:
        length = len(line.encode()) + 1
        if self._size and self._size + length > self._max_bytes:
            self._rotate()
        self._file.write_line(line)
        self._size += length

    def _rotate(self) -> None:
        self._file.close()
        try:
            self._older(self._keep).unlink(missing_ok=True)
            for number in range(self._keep - 1, 0, -1):
                if self._older(number).exists():
                    self._older(number).rename(self._older(number + 1))
            self._path.rename(self._older(1))
        finally:
            self._file = AppendOnly(self._path)
            self._size = self._path.stat().st_size

    def _older(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


@contextmanager
def unless_disk_refuses(path: Path) -> Iterator[None]:
    """Let a line of a log be lost when the system refuses it, and say so where launchd keeps it.

    What the line tells of has happened, so nobody may take the failed line for a failed deed.
    """
    try:
        yield
    except OSError as error:
        with suppress(OSError):  # the terminal may be gone as well
            sys.stderr.write(f"{path} cannot be written: {error}\n")


def empty_if_large(descriptor: int, size: int = OUTPUT_BYTES) -> None:
    """Empty the file that launchd has given for our complaints once it is large: nothing else ever does.

    Args:
        descriptor: of standard error; a terminal, a pipe and a small file stay as they are.
        size: in bytes.
    """
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_size > size:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)


def console(stream: TextIO | None = None) -> Sink:
    """A sink that prints events for a person; the details of debugging are left to the log.

    Who closes the window closes the terminal under a daemon that has yet to stop in order: it goes on without.
    """
    output: TextIO | None = stream or sys.stderr

    def write(event: Event) -> None:
        nonlocal output
        if output is None or event.get("level") == "debug":
            return
        job = f"{plain(event['job'], 80)}  " if event.get("job") else ""
        try:
            output.write(f"{local_time(event.get('ts', ''))}  {job}{describe(event)}\n")
            output.flush()
        except OSError:
            output = None

    return write


def relayed(event: Mapping[str, object]) -> bool:
    """Whether a line that another process wrote is an event of the vocabulary, to be passed on as it is."""
    return isinstance(event.get("event"), str) and event["event"] in EVENTS
