"""Disk against Redis against live processes: what does not fit, and what is answered."""

from __future__ import annotations

from datetime import UTC, datetime

from qlora_daemon.reconcile import Answer, Disk, Kind, Processes, Redis, compare
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State

NOW = datetime(2026, 11, 22, tzinfo=UTC)
ID, OTHER = "20261122-000000-a", "20261122-000001-b"
FOLLOWED = (ID, 2)


def record(job_id: str, state: State, attempt: int = 2) -> JobRecord:
    return JobRecord(id=job_id, name=job_id[16:], state=state, created=NOW, changed=NOW, attempt=attempt)


def disk(*records: JobRecord, followed: tuple[str, int] | None = None) -> Disk:
    return Disk({r.id: r for r in records}, frozenset(r.id for r in records), followed)


RUNNING = disk(record(ID, State.RUNNING), record(OTHER, State.QUEUED, 1), followed=FOLLOWED)


def found(disk: Disk, redis: Redis | None = None, processes: Processes | None = None) -> list[tuple[Kind, str]]:
    return [(finding.kind, finding.subject) for finding in compare(disk, redis, processes or Processes())]


def test_what_belongs_together_is_left_alone() -> None:
    """The followed attempt is in Redis, in the worker's hands and in a process: all as it should be."""
    redis = Redis(taken={"n": FOLLOWED}, hashes={"n": FOLLOWED}, workers={"w": 7})
    assert found(RUNNING, redis, Processes(7, {99: FOLLOWED})) == []
    assert found(RUNNING, Redis(waiting={"n": FOLLOWED}), Processes(7)) == []


def test_a_wiped_redis_needs_nothing() -> None:
    """A job that waits lies on disk alone until its turn has come."""
    assert found(RUNNING, Redis(), Processes(7, {99: FOLLOWED})) == []


def test_what_is_left_of_an_earlier_attempt_is_forgotten_once() -> None:
    """A worker that took it would start a process for nothing, each time anew."""
    name = {"n": (ID, 1)}
    assert found(RUNNING, Redis(waiting=name, hashes=name)) == [(Kind.LEFT_IN_QUEUE, "n")]
    assert found(RUNNING, Redis(taken=name, hashes=name)) == [(Kind.LEFT_TAKEN, "n")]
    assert found(RUNNING, Redis(hashes=name)) == [(Kind.LEFT_HASH, "n")]


def test_a_job_that_no_record_knows_is_forgotten() -> None:
    """Another home's job, or somebody's own, may not be trained here."""
    unknown = ("20250101-000000-x", 1)
    assert found(RUNNING, Redis(waiting={"x": unknown, "y": None})) == [
        (Kind.UNKNOWN_NAME, "x"),
        (Kind.UNKNOWN_NAME, "y"),
    ]


def test_keys_of_a_worker_that_lives_no_more_are_forgotten() -> None:
    """RQ keeps them for minutes, and shows a worker that is not there."""
    redis = Redis(workers={"old": 6, "ours": 7, "odd": None})
    assert found(RUNNING, redis, Processes(worker=7)) == [(Kind.LEFT_WORKER, "old"), (Kind.LEFT_WORKER, "odd")]


def test_a_training_process_whose_attempt_is_over_is_ended() -> None:
    """It holds the GPU, or will, for a result that nobody takes."""
    processes = Processes(7, {98: (ID, 1), 97: (OTHER, 1), 96: ("20250101-000000-x", 1), 99: FOLLOWED})
    findings = compare(RUNNING, None, processes)
    assert [finding.subject for finding in findings] == ["98", "97", "96"]
    assert {finding.answer for finding in findings} == {Answer.KILL}


def test_an_active_job_that_nobody_follows_is_settled() -> None:
    """The disk was full when its end should have been written down."""
    assert found(disk(record(ID, State.RUNNING))) == [(Kind.ABANDONED, ID)]


def test_folders_come_and_go() -> None:
    """A person deletes a run folder, or puts one back from a backup."""
    jobs = disk(record(ID, State.DONE), record(OTHER, State.QUEUED))
    assert found(Disk(jobs.records, frozenset({ID}))) == [(Kind.VANISHED, OTHER)]
    assert found(Disk({}, frozenset({ID}))) == [(Kind.APPEARED, ID)]


def test_a_disk_that_is_away_makes_no_job_vanish() -> None:
    """An external disk that is unplugged for a minute would empty the queue."""
    assert found(Disk(RUNNING.records, frozenset())) == []


def test_without_redis_nothing_is_said_of_it() -> None:
    """What cannot be seen is not gone."""
    assert found(RUNNING, None, Processes(7, {99: FOLLOWED})) == []
