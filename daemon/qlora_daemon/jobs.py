"""The owner's table of jobs: what the run folders say, and every change to it, stored before it counts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from qlora_daemon.log import unless_disk_refuses
from qlora_engine.job.events import Event, EventLog, Sink, reopening_sink
from qlora_engine.job.folder import JOB_ID, Home, RunFolder
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import ACTIVE, State
from qlora_engine.job.stored import migrate


class JobTable:
    """Records by id.

    Args:
        home: where the run folders are.
        sinks: where the events of jobs go beside their own `events.jsonl`.
    """

    def __init__(self, home: Home, sinks: Iterable[Sink]) -> None:
        self._home, self._sinks = home, list(sinks)
        self._records: dict[str, JobRecord] = {}
        self._by_request: dict[str, list[str]] = {}
        self._by_content: dict[str, list[str]] = {}
        self._by_group: dict[str, list[str]] = {}
        self._unreadable: set[str] = set()

    def load(self) -> Iterator[tuple[str, Exception]]:
        """Read every run folder; yields those that cannot be read, which stay as they are."""
        for name in sorted(self.folders()):
            try:
                self.read(name)
            except (OSError, ValueError) as error:
                yield name, error

    def folders(self) -> list[str]:
        """The names of the run folders that are there now, but for those whose record could not be read."""
        names = os.listdir(self._home.runs)  # noqa: PTH208  # Path objects for 10,000 entries cost more than the listing
        return [name for name in names if JOB_ID.fullmatch(name) and name not in self._unreadable]

    def read(self, name: str) -> None:
        """Read one run folder's record into the table; a folder of an older format is first brought up to that of now.

        Raises:
            NewerFormat: a newer qlorad has written it; it stays as it is.
            OSError, ValueError: it cannot be read, or not be brought up.
        """
        run = self._home.run(name)
        try:
            record, found = JobRecord.load_with_format(run.state)
            moved = migrate(run) if found != record.format else None
        except (OSError, ValueError):
            self._unreadable.add(name)
            raise
        if moved is not None:
            self.log(record).emit("run.upgraded", **{"from": moved[0], "to": moved[1]})
        self.add(record)

    def drop(self, job_id: str) -> None:
        """Forget a job whose run folder is gone."""
        record = self._records.pop(job_id)
        for index, key in self._indices(record):
            index[key].remove(job_id)
            if not index[key]:
                del index[key]

    def _indices(self, record: JobRecord) -> Iterator[tuple[dict[str, list[str]], str]]:
        """Where a record can be found beside its id, and under which key."""
        if record.request is not None:
            yield self._by_request, submission_of(record.request)
        if record.content is not None:
            yield self._by_content, record.content
        if record.group is not None:
            yield self._by_group, record.group

    @property
    def unreadable(self) -> frozenset[str]:
        """The run folders that are left alone: their record could not be read."""
        return frozenset(self._unreadable)

    def add(self, record: JobRecord) -> None:
        """Take a record that is on disk into the table."""
        known = record.id in self._records
        self._records[record.id] = record
        if not known:
            for index, key in self._indices(record):
                index.setdefault(key, []).append(record.id)

    def get(self, job_id: str) -> JobRecord | None:
        """The record of a job."""
        return self._records.get(job_id)

    def of_request(self, key: str) -> JobRecord | None:
        """The job that a submission with this key became; of a sweep any one."""
        found = self._by_request.get(key)
        return self._records[found[0]] if found else None

    def of_group(self, group: str) -> list[JobRecord]:
        """The jobs of a sweep that are there."""
        return [self._records[job_id] for job_id in self._by_group.get(group, ())]

    def unfinished_like(self, content: str) -> JobRecord | None:
        """The newest job of this content that has not ended; see `duplicates.content_of`."""
        alike = (self._records[job_id] for job_id in reversed(self._by_content.get(content, [])))
        return next((record for record in alike if not record.is_final), None)

    def __iter__(self) -> Iterator[JobRecord]:
        return iter(list(self._records.values()))

    @property
    def by_id(self) -> Mapping[str, JobRecord]:
        """The whole table."""
        return self._records

    @property
    def unfinished(self) -> int:
        """How many jobs have not ended."""
        return sum(not record.is_final for record in self)

    @property
    def active(self) -> list[JobRecord]:
        """Jobs that the worker has, or may have; more than one only after a fault."""
        return [record for record in self if record.state in ACTIVE]

    @property
    def home(self) -> Home:
        """Where the run folders are."""
        return self._home

    def run(self, job_id: str) -> RunFolder:
        """The job's run folder."""
        return self._home.run(job_id)

    def move(self, job_id: str, target: State, reason: str = "", **changes: Any) -> JobRecord:
        """Move a job to another state, on disk first.

        Raises:
            IllegalMove: the table of moves forbids it: a bug.
            OSError: the record cannot be written; the job is then as it was.
        """
        before = self._records[job_id]
        record = before.moved(target, reason, **changes)
        record.store(self.run(job_id).state)
        self._records[job_id] = record
        self.log(record).emit("job.state", **{"from": before.state, "to": target, "reason": reason})
        return record

    def note(self, job_id: str, *, store: bool, **changes: Any) -> JobRecord:
        """Note other facts of a job; without `store` they reach the disk with its next move."""
        record = self._records[job_id].noting(**changes)
        if store:
            record.store(self.run(job_id).state)
        self._records[job_id] = record
        return record

    def relay(self, event: Event) -> None:
        """Pass on an event of a job that its own file holds already."""
        for sink in self._sinks:
            sink(event)

    def log(self, record: JobRecord) -> EventLog:
        """The log of one job: its own file, and the service log."""
        bound: dict[str, Any] = {"job": record.id}
        if record.attempt:
            bound["attempt"] = record.attempt
        return EventLog([_appending_to(self.run(record.id)), *self._sinks], **bound)


def member_key(submission: str, number: int) -> str:
    """The key of one job of a sweep, from that of the submission."""
    return f"{submission}/{number}"


def submission_of(key: str) -> str:
    """The key of the submission that a job came from."""
    return key.partition("/")[0]


def _appending_to(run: RunFolder) -> Sink:
    """A sink that keeps no descriptor: a table of ten thousand jobs would run out of them."""
    append = reopening_sink(run.events)

    def write(event: Event) -> None:
        with unless_disk_refuses(run.events):
            append(event)

    return write
