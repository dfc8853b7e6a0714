"""Following files of JSON lines while other processes write them: a job's events, the service log."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from qlora_client.records import load_record
from qlora_engine.job.events import Event, parse_line
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.states import FINAL

# Looking costs two `stat` calls. A file watcher would react sooner, but it misses files that do not exist yet and
# goes silent when their folder is replaced, so it would need this look beside it.
LOOK_SECONDS = 0.2
# The daemon stores a job's final state before it writes the event of it; an event that is not there by then was
# lost in a crash.
FINAL_EVENT_SECONDS = 2.0
_CHUNK = 2**20
_LAST_LINE_BYTES = 65_536


class Tail:
    """The lines that are added to a file, which may not exist yet, be cut, or be rotated away.

    A line counts when its newline is there. After a rotation the old file is read to its end first.

    Args:
        path: of the file.
        at_end: pass over what is there now.
        last_bytes: pass over all of it but so many bytes; the line that this cuts is passed over, too.
    """

    def __init__(self, path: Path, *, at_end: bool = False, last_bytes: int | None = None) -> None:
        self.path = path
        self._descriptor = -1
        self._offset = 0
        self._rest = b""
        kept = 0 if at_end else last_bytes
        if kept is not None and self._open():
            self._begin_at(max(0, os.fstat(self._descriptor).st_size - kept))

    def _begin_at(self, offset: int) -> None:
        self._offset = offset
        if offset and os.pread(self._descriptor, 1, offset - 1) != b"\n":
            ahead = os.pread(self._descriptor, _LAST_LINE_BYTES, offset)
            self._offset += ahead.find(b"\n") + 1  # of none that ends so soon, the rest is read as a damaged line

    def lines(self) -> Iterator[bytes]:
        """The lines added since the last call, without their newlines."""
        if self._descriptor < 0 and not self._open():
            return
        replaced = self._is_replaced()
        yield from self._added()
        if replaced:
            self.close()
            if self._open():
                yield from self._added()

    def events(self) -> Iterator[Event]:
        """`lines` as events; a line that a crash cut short is passed over."""
        return (event for line in self.lines() if (event := parse_line(line)) is not None)

    def close(self) -> None:
        """Give the file back; the next call begins at the start of whatever is there then."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._offset, self._rest = -1, 0, b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> bool:
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        return True

    def _is_replaced(self) -> bool:
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return True
        ours = os.fstat(self._descriptor)
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def _added(self) -> Iterator[bytes]:
        if os.fstat(self._descriptor).st_size < self._offset:
            self._offset, self._rest = 0, b""
        while chunk := os.pread(self._descriptor, _CHUNK, self._offset):
            self._offset += len(chunk)
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            yield from whole


class LastLine:
    """The newest line of a file that grows fast, without reading the rest of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None

    def event(self) -> Event | None:
        """The last complete line as an event, or None if there is none that was not returned before."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if (status.st_ino, status.st_size) == self._seen:
                    return None
                self._seen = (status.st_ino, status.st_size)
                file.seek(max(0, status.st_size - _LAST_LINE_BYTES))
                complete = file.read(_LAST_LINE_BYTES).rpartition(b"\n")[0]
        except FileNotFoundError:
            return None
        return parse_line(complete.rpartition(b"\n")[2])


class JobTail:
    """What is new in a run folder: its events in order, then the newest micro-batch if there is a newer one.

    `ended` becomes true when the job is final and everything that it said was returned.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.ended = False
        self._events = Tail(run.events)
        self._step = LastLine(run.metrics)
        self._said: object = None  # the state that the last event of it named
        self._final_since: float | None = None

    def read(self) -> list[Event]:
        """What has been added since the last call.

        Raises:
            NoSuchJob: the run folder is gone.
            RecordUnreadable: its record cannot be read.
        """
        final = load_record(self.run).is_final  # before the events, so that none can be missed
        found = list(self._events.events())
        changes = [event.get("to") for event in found if event["event"] == "job.state"]
        self._said = changes[-1] if changes else self._said
        said_so = self._said in FINAL  # of a job that was retried since, its record is not
        if not said_so and (step := self._step.event()):
            found.append(step)
        if not final:
            self._final_since = None
        elif said_so or self._waited_long_enough(news=bool(found)):
            self.ended = True
            self.close()
        return found

    def close(self) -> None:
        """Give the files back."""
        self._events.close()

    def _waited_long_enough(self, *, news: bool) -> bool:
        now = time.monotonic()
        if self._final_since is None or news:
            self._final_since = now
        return now - self._final_since >= FINAL_EVENT_SECONDS


def follow_job(run: RunFolder) -> Iterator[Event]:
    """Everything a job has said and says, with live progress (`training.step`), until it is final."""
    tail = JobTail(run)
    try:
        while True:
            yield from tail.read()
            if tail.ended:
                return
            time.sleep(LOOK_SECONDS)
    finally:
        tail.close()


def read_events(path: Path) -> Iterator[Event]:
    """The events that are in a file now; none if there is no such file."""
    with Tail(path) as tail:
        yield from tail.events()
