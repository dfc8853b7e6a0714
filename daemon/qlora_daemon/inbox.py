"""The watched folder: a thread that notices what is dropped and tells the owner what has come to rest."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import watchfiles

from qlora_daemon.mail import FileSettled, FolderWatched, Post
from qlora_daemon.settling import Decision, Found, Kind, decide, files_in, is_passing, look, problem_of
from qlora_daemon.writers import being_written

# watchfiles goes silent when the folder is deleted and made again, so it is looked at without it, too.
RESCAN_SECONDS = 3.0
_AT_REST = (Decision.TAKE, Decision.REJECT)
TELL_AGAIN_SECONDS = 30.0  # what still lies there could not be taken: the disk was full, for example


@dataclass
class _Seen:
    found: Found
    since: float  # when it last changed, monotonic
    told: float | None = None


class Inbox(threading.Thread):
    """Watches the folder until `stop`."""

    def __init__(self, folder: Path, *, settle_seconds: float, post: Post) -> None:
        super().__init__(name="inbox", daemon=True)
        self._folder, self._settle, self._post = folder, settle_seconds, post
        self._seen: dict[str, _Seen] = {}
        self._changed = threading.Event()
        self._stopped = threading.Event()
        self._watcher: _Watcher | None = None
        self._lost: str | None = None

    def stop(self) -> None:
        """End the thread; what it has told stays told."""
        self._stopped.set()
        self._changed.set()

    def run(self) -> None:
        """Scan when something changes, often while something is settling, and now and then in any case."""
        while not self._stopped.is_set():
            waiting = self._watch() and self._scan(time.monotonic())
            self._changed.wait(max(0.05, min(0.5, self._settle / 4)) if waiting else RESCAN_SECONDS)
            self._changed.clear()
        if self._watcher is not None:
            self._watcher.stop()

    def _watch(self) -> bool:
        """Make sure that the folder is there and that the watcher sees this very folder."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            before = self._watcher
            same = before is not None and before.sees(self._folder.stat())
            if before is None or not same or not before.is_alive():
                watcher = _Watcher(self._folder, self._changed)
                if before is not None:
                    before.stop()
                self._watcher = watcher
                watcher.start()
                if not same or self._lost:
                    self._lost = None
                    self._post(FolderWatched())
        except OSError as error:
            self._tell_lost(str(error.strerror or error))
            return False
        return True

    def _scan(self, now: float) -> bool:
        """Look at every entry; whether one of them is still settling."""
        try:
            names = {path.name for path in self._folder.iterdir() if not is_passing(path.name)}
            for gone in self._seen.keys() - names:
                del self._seen[gone]
        except OSError as error:  # a disk that has gone; whatever it is, it must not end this thread
            self._tell_lost(str(error.strerror or error))
            return False
        if self._lost is not None:
            self._lost = None
            self._post(FolderWatched())
        decided = {name: self._decide(name, now, written=False) for name in sorted(names)}
        at_rest = {
            name: _files(self._seen[name].found) for name, decision in decided.items() if decision in _AT_REST
        }  # only of these it is worth asking who writes
        written = being_written(path for files in at_rest.values() for path in files)
        for name, files in at_rest.items():
            decided[name] = self._decide(name, now, written=not written.isdisjoint(files))
            if decided[name] in _AT_REST:
                self._tell(self._seen[name], now, rejected=decided[name] is Decision.REJECT)
        return Decision.WAIT in decided.values()

    def _decide(self, name: str, now: float, *, written: bool) -> Decision:
        try:
            found = look(self._folder / name)
        except OSError:  # this one cannot be read; the others can be taken
            return Decision.WAIT
        if found is None:
            self._seen.pop(name, None)
            return Decision.WAIT
        seen = self._seen.get(name)
        if seen is None or seen.found != found:
            seen = self._seen[name] = _Seen(found, now)
        if seen.told is not None and now - seen.told < TELL_AGAIN_SECONDS:
            return Decision.LEAVE
        return decide(found, quiet=now - seen.since, written=written, settle=self._settle)

    def _tell(self, seen: _Seen, now: float, *, rejected: bool) -> None:
        self._post(FileSettled(seen.found, problem_of(seen.found) if rejected else None))
        seen.told = now

    def _tell_lost(self, reason: str) -> None:
        if reason != self._lost:
            self._lost = reason
            self._post(FolderWatched(lost=reason))


def _files(found: Found) -> list[Path]:
    try:
        return list(files_in(found.path)) if found.kind is Kind.FOLDER else [found.path]
    except OSError:  # it went while it was looked at, which the next look finds
        return []


class _Watcher(threading.Thread):
    """Sets an event when the folder changes. Only a hint: the inbox looks for itself.

    It keeps the folder open: the number of a deleted folder is given to the next one that is made (ext4 does so
    at once), but not while a descriptor holds it, so the number tells the two apart.

    Raises:
        OSError: the folder cannot be opened.
    """

    def __init__(self, folder: Path, changed: threading.Event) -> None:
        super().__init__(name="watcher", daemon=True)
        self._folder, self._changed = folder, changed
        self._stop_event = threading.Event()
        self._held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def sees(self, found: os.stat_result) -> bool:
        """Whether what lies at the path now is the folder that is watched."""
        return os.path.samestat(os.fstat(self._held), found)

    def stop(self) -> None:
        """End the thread; call once."""
        self._stop_event.set()
        os.close(self._held)

    def run(self) -> None:
        try:
            # Steps of 250 ms: each costs a wake-up, and a settled file waits longer than that anyway.
            for _ in watchfiles.watch(
                self._folder,
                watch_filter=None,
                step=250,
                debounce=250,
                recursive=False,
                stop_event=self._stop_event,
                raise_interrupt=False,
            ):
                self._changed.set()
        except (OSError, RuntimeError):
            self._changed.set()  # the folder has gone: the inbox finds this thread ended and starts another
