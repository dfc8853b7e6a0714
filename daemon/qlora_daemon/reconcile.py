"""Disk against Redis against live processes: what does not fit, and the answer to each. Data in, findings out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import ACTIVE, State

Attempt = tuple[str, int]


class Kind(StrEnum):
    """What does not fit. The value is what an event calls it."""

    LEFT_IN_QUEUE = "an attempt in the queue that is over"
    LEFT_TAKEN = "an attempt in the worker's list that is over"
    LEFT_HASH = "what Redis keeps of an attempt that is over"
    UNKNOWN_NAME = "a name in the queue that is no attempt of a job here"
    LEFT_WORKER = "a worker's key without its process"
    ORPHAN = "a training process whose attempt is over"
    ABANDONED = "an active job that nobody follows"
    VANISHED = "a job whose run folder is gone"
    APPEARED = "a run folder that was not known"


class Answer(StrEnum):
    """What is done about it. The value is what an event calls it."""

    FORGET_ATTEMPT = "taken out of Redis"
    FORGET_WORKER = "taken out of Redis, too"
    KILL = "ended: what it computes would be thrown away"
    SETTLE = "settled from what its run folder says"
    DROP = "no longer in the list of jobs"
    LOAD = "read from disk"


_ANSWERS = {
    Kind.LEFT_IN_QUEUE: Answer.FORGET_ATTEMPT,
    Kind.LEFT_TAKEN: Answer.FORGET_ATTEMPT,
    Kind.LEFT_HASH: Answer.FORGET_ATTEMPT,
    Kind.UNKNOWN_NAME: Answer.FORGET_ATTEMPT,
    Kind.LEFT_WORKER: Answer.FORGET_WORKER,
    Kind.ORPHAN: Answer.KILL,
    Kind.ABANDONED: Answer.SETTLE,
    Kind.VANISHED: Answer.DROP,
    Kind.APPEARED: Answer.LOAD,
}


@dataclass(frozen=True)
class Finding:
    """One thing that does not fit: `subject` is a name in Redis, a job's id or a process id."""

    kind: Kind
    subject: str
    job: str | None = None

    @property
    def answer(self) -> Answer:
        """What is done about it."""
        return _ANSWERS[self.kind]


@dataclass(frozen=True)
class Disk:
    """What the daemon knows from the run folders, and which folders there are now."""

    records: Mapping[str, JobRecord] = field(default_factory=dict)
    folders: frozenset[str] = frozenset()
    followed: Attempt | None = None  # the active attempt that the daemon follows


@dataclass(frozen=True)
class Redis:
    """Names in Redis, each with the attempt that it stands for, or None."""

    waiting: Mapping[str, Attempt | None] = field(default_factory=dict)
    taken: Mapping[str, Attempt | None] = field(default_factory=dict)
    hashes: Mapping[str, Attempt | None] = field(default_factory=dict)
    workers: Mapping[str, int | None] = field(default_factory=dict)  # name to process id


@dataclass(frozen=True)
class Processes:
    """Live processes of this home."""

    worker: int | None = None
    training: Mapping[int, Attempt] = field(default_factory=dict)


def compare(disk: Disk, redis: Redis | None, processes: Processes) -> list[Finding]:
    """Everything that does not fit, each thing once. Without an answer from Redis nothing is said of it.

    Disk decides: of Redis and of the processes only what belongs to the followed attempt may be there. A job that
    waits needs nothing in Redis, for it is offered when its turn has come; so a wiped Redis yields no finding, and
    the followed attempt's own trace is watched by the runner, several times a second.
    """
    return [
        *_of_disk(disk),
        *(_of_redis(disk, redis, processes) if redis is not None else ()),
        *_of_processes(disk, processes),
    ]


def _of_disk(disk: Disk) -> list[Finding]:
    found = []
    followed = disk.followed[0] if disk.followed else None
    for record in disk.records.values():
        if record.id in disk.folders:
            if record.state in ACTIVE and followed is None:
                found.append(Finding(Kind.ABANDONED, record.id, record.id))
        elif disk.folders and record.id != followed:  # all gone at once is a disk that is away
            found.append(Finding(Kind.VANISHED, record.id, record.id))
    unknown = disk.folders - disk.records.keys()
    return found + [Finding(Kind.APPEARED, name, name) for name in sorted(unknown)]


def _of_redis(disk: Disk, redis: Redis, processes: Processes) -> list[Finding]:
    found: dict[str, Finding] = {}
    for kind, names in (
        (Kind.LEFT_IN_QUEUE, redis.waiting),
        (Kind.LEFT_TAKEN, redis.taken),
        (Kind.LEFT_HASH, redis.hashes),
    ):
        for name, attempt in names.items():
            if attempt is not None and attempt == disk.followed:
                continue
            known = attempt is not None and attempt[0] in disk.records
            finding = Finding(kind if known else Kind.UNKNOWN_NAME, name, attempt[0] if known and attempt else None)
            found.setdefault(name, finding)
    gone = [name for name, pid in redis.workers.items() if pid is None or pid != processes.worker]
    return [*found.values(), *(Finding(Kind.LEFT_WORKER, name) for name in gone)]


def _of_processes(disk: Disk, processes: Processes) -> list[Finding]:
    over: Collection[tuple[int, Attempt]] = [
        (pid, attempt) for pid, attempt in processes.training.items() if _is_over(disk, attempt)
    ]
    return [Finding(Kind.ORPHAN, str(pid), attempt[0]) for pid, attempt in over]


def _is_over(disk: Disk, attempt: Attempt) -> bool:
    """Whether nothing that an attempt computes can count: it is not followed, and its job has moved on."""
    if attempt == disk.followed:
        return False
    record = disk.records.get(attempt[0])
    if record is None:
        return attempt[0] not in disk.folders
    return attempt[1] < record.attempt or record.state not in (State.STARTING, State.RUNNING, State.STOPPING)
