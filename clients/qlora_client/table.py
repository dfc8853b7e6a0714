"""All jobs of a home, read again only where they have changed: a look at ten thousand takes milliseconds."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from qlora_client.listing import Summary, job_ids, summary_of
from qlora_engine.job.states import FINAL

if TYPE_CHECKING:
    from qlora_engine.job.folder import Home

# A folder's time is as coarse as the file system's clock: one that changed so lately may change again unseen.
_SETTLED_NS = 2_000_000_000
_Signature = tuple[int, int, int]


class JobTable:
    """The summaries of all jobs, newest first, as of the last look. Whose record cannot be read is left out.

    A job that has ended is looked at again only when it is named: no record of one changes without an event.

    Attributes:
        jobs: by id.
    """

    def __init__(self, home: Home) -> None:
        self.jobs: dict[str, Summary] = {}
        self._home = home
        self._signatures: dict[str, _Signature] = {}
        self._listed_at: tuple[int, int] | None = None  # the folder of runs when it was listed
        self._ids: list[str] = []

    def look(self, named: Iterable[str] = ()) -> None:
        """Read what has changed.

        Args:
            named: ids of jobs that events tell of since the last look.

        Raises:
            OSError: the folder of runs cannot be read.
        """
        again = set(named)
        self._list()
        for job_id in self._ids:
            known = self.jobs.get(job_id)
            if known is None or known.state not in FINAL or job_id in again:
                self._read(job_id)
        if len(self.jobs) > len(self._ids):
            there = set(self._ids)
            self.jobs = {job_id: job for job_id, job in self.jobs.items() if job_id in there}
            self._signatures = {job_id: found for job_id, found in self._signatures.items() if job_id in there}

    def newest_first(self) -> list[Summary]:
        """All of them."""
        return [self.jobs[job_id] for job_id in self._ids if job_id in self.jobs]

    def _list(self) -> None:
        try:
            found = self._home.runs.stat()
        except FileNotFoundError:
            self._ids, self._listed_at = [], None
            return
        state = (found.st_ino, found.st_mtime_ns)
        if state != self._listed_at:
            settled = time.time_ns() - found.st_mtime_ns > _SETTLED_NS
            self._ids, self._listed_at = job_ids(self._home), state if settled else None

    def _read(self, job_id: str) -> None:
        run = self._home.run(job_id)
        try:
            found = os.stat(run.state)  # noqa: PTH116  # of ten thousand files
            signature = (found.st_ino, found.st_mtime_ns, found.st_size)
            if self._signatures.get(job_id) != signature:
                self.jobs[job_id] = summary_of(run)
                self._signatures[job_id] = signature
        except (OSError, ValueError, KeyError, TypeError):
            with contextlib.suppress(KeyError):
                del self.jobs[job_id]
            self._signatures.pop(job_id, None)
