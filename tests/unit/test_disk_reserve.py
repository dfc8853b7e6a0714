"""A disk that fills up makes jobs wait instead of fail."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from qlora_daemon import surroundings
from qlora_daemon.dispatcher import Conditions, next_job, to_stop
from qlora_daemon.limits import Limits, Surroundings
from qlora_daemon.surroundings import Reading
from qlora_engine.job.hindrance import Hindrance, Kind, Whom
from qlora_engine.job.pause import Pause
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from qlora_engine.job.turn import why_it_waits
from qlora_worker.settings import Settings

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
GB = 10**9
LIMITS = Limits(reserve=5 * GB)


def after(*free: float | None, limits: Limits = LIMITS) -> tuple[Hindrance, ...]:
    """What hinders after looks that found so many gigabytes free."""
    around = Surroundings()
    for number, found in enumerate(free):
        reading = Reading(free=None if found is None else int(found * GB))
        around = around.next(reading, limits, float(number))
    return around.hindrances(limits, NOW)


def conditions(*free: float | None) -> Conditions:
    return Conditions(queue_answers=True, gpu_free=True, hindrances=after(*free))


def job(state: State, **keys: object) -> JobRecord:
    return JobRecord.new("20261122-143501-a", "a").noting(state=state, **keys)


@pytest.mark.parametrize(
    ("free", "starts"), [((5.0,), True), ((4.9,), False), ((4.9, 5.4), False), ((4.9, 5.4, 5.5), True), ((None,), True)]
)
def test_no_job_starts_on_a_disk_without_the_reserve(free: tuple[float | None, ...], starts: bool) -> None:
    """It would fail at its first checkpoint. And one that starts at every megabyte that comes free would flap."""
    waiting = job(State.QUEUED, urgent=True)  # urgency makes no room
    assert (next_job([waiting], NOW, conditions(*free)) is not None) is starts


def test_a_job_that_trains_uses_the_reserve_and_stops_while_there_is_room_for_its_checkpoint() -> None:
    """The reserve is there for it: a job that stopped as soon as it had written something would never end."""
    running = job(State.RUNNING)
    assert to_stop([running], NOW, conditions(4.9)) is None
    assert to_stop([running], NOW, conditions(2.5)) is None
    stop = to_stop([running], NOW, conditions(2.4))
    assert stop is not None
    assert stop.after_stop is State.QUEUED
    assert stop.reason == "the disk has 2.4 GB free, and jobs wait until 5.5 GB are; it goes on from its checkpoint"


def test_who_looks_at_the_job_sees_what_it_waits_for() -> None:
    """A queue that stands still without a word is the worst of all."""
    waits = why_it_waits(job(State.QUEUED), [], Pause(), NOW, after(3.2))
    assert waits == "the disk has 3.2 GB free, and jobs wait until 5.5 GB are"
    assert [(one.kind, one.whom) for one in after(3.2)] == [(Kind.DISK, Whom.WAITING)]


def test_without_a_reserve_nothing_waits() -> None:
    """Somebody who gives a home a small disk of its own knows what it is for."""
    assert after(0.0, limits=Limits.of(Settings(disk_reserve_gb=0))) == ()
    assert Limits.of(Settings()).reserve == 5 * GB


def test_the_room_is_that_of_the_disk_with_the_runs(tmp_path: Path) -> None:
    """And a disk that is away is said, not taken for one that is full."""
    assert (surroundings.read(tmp_path).free or 0) > 0
    away = surroundings.read(tmp_path / "away")
    assert away.free is None
    assert [what for what, _ in away.unanswered] == ["free"]
    assert after(3.0, None) == ()
