"""All jobs of a home, read again only where they have changed: a look at ten thousand takes milliseconds."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from qlora_client.listing import Summary, job_ids, summary_of
from qlora_engine.job.states import ACTIVE, FINAL

if TYPE_CHECKING:
    from qlora_engine.job.folder import Home

# A folder's time is as coarse as the file system's clock: one that changed so lately may change again unseen.
_SETTLED_NS = 2_000_000_000
MOST = 1000  # jobs that are looked at each time, since a look costs 2 µs
_Signature = tuple[int, int, int] | None


class JobTable:
    """The summaries of all jobs as of the last look. Whose record cannot be read is left out.

    A job that has ended is looked at again only when it is named: no record of one changes without an event. Of very
    many that wait, some are looked at each time, in turn.

    Attributes:
        jobs: by id.
    """

    def __init__(self, home: Home) -> None:
        self.jobs: dict[str, Summary] = {}
        self._home = home
        self._runs = str(home.runs)
        self._signatures: dict[str, _Signature] = {}
        self._listed_at: _Signature = None  # the folder of runs when it was listed, once it is settled
        self._ids: list[str] = []
        self._open: deque[str] = deque()  # ids of jobs that have not ended, the next to be looked at first

    def look(self, named: Iterable[str] = ()) -> bool:
        """Read what has changed.

        Args:
            named: ids of jobs that events tell of since the last look.

        Returns:
            Whether anything has.

        Raises:
            OSError: the folder of runs cannot be read.
        """
        listed = self._list()
        new = [job_id for job_id in self._ids if job_id not in self._signatures] if listed else []
        turn = [self._open[index] for index in range(min(MOST, len(self._open)))]
        self._open.rotate(-len(turn))
        there = set(self._ids) if listed else self._signatures.keys()
        again = (set(named) | {job.id for job in self.jobs.values() if job.state in ACTIVE}) & there
        changed = [job_id for job_id in {*new, *turn, *again} if self._read(job_id)]
        gone = [job_id for job_id in self._signatures if job_id not in there] if listed else []
        for job_id in gone:
            self.jobs.pop(job_id, None)
            del self._signatures[job_id]
        if changed or gone:
            known = set(self._open)
            ahead = [*self._open, *(job_id for job_id in changed if job_id not in known)]
            self._open = deque(job_id for job_id in ahead if self._may_change(job_id))
        return bool(changed or gone)

    def newest_first(self) -> list[Summary]:
        """All of them."""
        return [self.jobs[job_id] for job_id in self._ids if job_id in self.jobs]

    def _may_change(self, job_id: str) -> bool:
        job = self.jobs.get(job_id)
        return job_id in self._signatures and (job is None or job.state not in FINAL)

    def _list(self) -> bool:
        """List the folder of runs if it has changed; returns whether it was listed."""
        found = _signature_of(self._runs)
        if found is not None and found == self._listed_at:
            return False
        settled = found is not None and time.time_ns() - found[1] > _SETTLED_NS
        self._ids, self._listed_at = job_ids(self._home), found if settled else None
        return True

    def _read(self, job_id: str) -> bool:
        """Read a job's record unless it is as it was; returns whether it is not."""
        signature = _signature_of(f"{self._runs}/{job_id}/state.json")
        if job_id in self._signatures and self._signatures[job_id] == signature:
            return False
        self._signatures[job_id] = signature
        try:
            self.jobs[job_id] = summary_of(self._home.run(job_id))
        except (OSError, ValueError, KeyError, TypeError):
            self.jobs.pop(job_id, None)
        return True


def _signature_of(path: str) -> _Signature:
    """What changes whenever the file or folder is replaced or written; None where there is none.

    As text, since Path objects for ten thousand looks take ten times as long as the looks.
    """
    try:
        found = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
