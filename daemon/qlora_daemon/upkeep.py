"""What keeps a home in order and may take its time: deletions, and marks for backups and search; in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from qlora_daemon.mail import Post, RejectedTrimmed, UpkeepFailed
from qlora_daemon.rejections import trim
from qlora_engine.host import backup
from qlora_engine.job.disposal import delete, leftovers
from qlora_engine.job.errors import ProgramFailed
from qlora_engine.job.folder import Home

Task = Callable[[], None]


class Upkeep(threading.Thread):
    """Does one thing after the other until `stop`. None of it matters to training, so what fails is only said.

    Args:
        home: which is kept in order.
        keep_rejected: so many rejections stay.
        post: tells the owner what was done or could not be.
    """

    def __init__(self, home: Home, *, keep_rejected: int, post: Post) -> None:
        super().__init__(name="upkeep", daemon=True)
        self._home, self._keep_rejected, self._post = home, keep_rejected, post
        self._tasks: SimpleQueue[tuple[str, Task] | None] = SimpleQueue()
        self._stopped = threading.Event()
        self._marked: set[Path] = set()
        self._marks = backup.is_here()

    def begin(self) -> None:
        """What a start finds: what an earlier daemon or client had no time to delete, and folders to be marked."""
        self._put("deleting what was set aside", self._delete_leftovers)
        self.trim_rejected()
        if self._marks:
            for folder in (self._home.models, self._home.tokens.parent, self._home.state):
                self._put(f"marking {folder}", lambda folder=folder: self._mark(folder))  # type: ignore[misc]
            for folder in (self._home.models, self._home.tokens.parent, self._home.runs):
                self._put(f"hiding {folder}", lambda folder=folder: _hide(folder))  # type: ignore[misc]
        self.start()

    def trim_rejected(self) -> None:
        """Delete the oldest rejections, if there are too many."""
        self._put("trimming what was rejected", self._trim_rejected)

    def leave_out_of_backups(self, folder: Path) -> None:
        """Have the backup pass over a folder that can be made again, such as a run's checkpoints; once each."""
        if self._marks and folder not in self._marked:
            self._marked.add(folder)
            self._put(f"marking {folder}", lambda: self._mark(folder))

    def stop(self) -> None:
        """Do nothing more. What is under way goes on at the next start."""
        self._stopped.set()
        self._tasks.put(None)

    def run(self) -> None:
        """One task after the other."""
        while (task := self._tasks.get()) is not None and not self._stopped.is_set():
            doing, do = task
            try:
                do()
            except ProgramFailed as error:
                self._post(UpkeepFailed(doing, error.what))
            except OSError as error:
                self._post(UpkeepFailed(doing, str(error)))

    def _put(self, doing: str, task: Task) -> None:
        self._tasks.put((doing, task))

    def _delete_leftovers(self) -> None:
        for path in leftovers(self._home):
            if self._stopped.is_set():
                return
            delete(path)

    def _trim_rejected(self) -> None:
        gone = trim(self._home.rejected, self._keep_rejected)
        if gone:
            self._delete_leftovers()
            self._post(RejectedTrimmed(gone, self._keep_rejected))

    def _mark(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        backup.exclude(folder)


def _hide(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    backup.hide_from_search(folder)
