"""Which job runs next is decided from data alone."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from qlora_daemon.dispatcher import Conditions, next_job
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import ACTIVE, State

NOW = datetime(2026, 11, 22, 14, 35, tzinfo=UTC)
FREE = Conditions(queue_answers=True, gpu_free=True)


def job(name: str, *, age: int = 0, priority: int = 0, state: State = State.QUEUED) -> JobRecord:
    made = NOW - timedelta(minutes=age)
    return JobRecord(
        id=f"20261122-143500-{name}", name=name, state=state, priority=priority, created=made, changed=made
    )


def test_the_highest_priority_goes_first_and_of_equals_the_oldest() -> None:
    """The order that `qlora ls` shows is the order that happens."""
    jobs = [job("young", age=1), job("old", age=9), job("low", age=99, priority=-1), job("high", priority=2)]
    order = []
    while jobs:
        chosen = next_job(jobs, NOW, FREE)
        order.append(chosen)
        jobs = [one for one in jobs if one.id != chosen]
    assert [name and name[16:] for name in order] == ["high", "old", "young", "low"]


@pytest.mark.parametrize("state", sorted(ACTIVE))
def test_nothing_starts_beside_an_active_job(state: State) -> None:
    """One GPU trains one job."""
    assert next_job([job("waiting"), job("other", state=state)], NOW, FREE) is None


@pytest.mark.parametrize(
    "conditions",
    [
        Conditions(queue_answers=False, gpu_free=True),
        Conditions(queue_answers=True, gpu_free=False),
    ],
)
def test_nothing_starts_while_it_could_not_run(conditions: Conditions) -> None:
    """An attempt that cannot begin is only noise in the job's history."""
    assert next_job([job("waiting")], NOW, conditions) is None


def test_a_job_that_rests_keeps_its_place() -> None:
    """A short rest after a return must not let younger jobs overtake."""
    jobs = [job("first", age=5), job("second", age=1)]
    resting = Conditions(True, True, resting={jobs[0].id: NOW + timedelta(seconds=1)})
    assert next_job(jobs, NOW, resting) is None
    assert next_job(jobs, NOW + timedelta(seconds=1), resting) == jobs[0].id


def test_only_queued_jobs_start() -> None:
    """A held, blocked or finished job waits for something else than its turn."""
    others = [job(state, state=state) for state in State if state is not State.QUEUED and state not in ACTIVE]
    assert next_job(others, NOW, FREE) is None


def test_the_choice_does_not_depend_on_the_order_of_the_table() -> None:
    """The same jobs give the same choice, whatever order a restart reads them in."""
    jobs = [job(f"j{number}", age=number % 7, priority=number % 3) for number in range(50)]
    expected = next_job(jobs, NOW, FREE)
    for seed in range(20):
        random.Random(seed).shuffle(jobs)
        assert next_job(jobs, NOW, FREE) == expected
