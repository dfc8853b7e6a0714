"""Whose turn it is: what holds for every queue that there can be, not only for those that somebody thought of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_daemon.dispatcher import Conditions, Stop, next_job, to_stop
from qlora_engine.job.errors import JobRejected
from qlora_engine.job.hindrance import Hindrance, Kind, Whom, hindering
from qlora_engine.job.naming import resolve
from qlora_engine.job.pause import Pause
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import ACTIVE, FINAL, State
from qlora_engine.job.turn import is_ready, order, standing, why_it_waits

# The same examples every time, however slow the machine is that it runs on.
settings.register_profile("steady", deadline=None, derandomize=True, database=None)
settings.load_profile("steady")

NOW = datetime(2026, 11, 22, 14, 35, tzinfo=UTC)
FREE = Conditions(queue_answers=True, gpu_free=True)
NO_PAUSE = Pause()


def job(number: int, *, age: float = 0, state: State = State.QUEUED, **more: object) -> JobRecord:
    made = NOW - timedelta(minutes=age)
    return JobRecord(
        id=f"20261122-143500-j{number}", name=f"j{number}", state=state, created=made, changed=made, **more
    )


moments = st.none() | st.integers(-60, 60).map(lambda minutes: NOW + timedelta(minutes=minutes))
waiting = st.builds(
    job,
    st.integers(0, 10**6),
    age=st.integers(0, 1000),
    state=st.sampled_from([State.QUEUED, State.QUEUED, State.HELD, State.BLOCKED, *sorted(FINAL)]),
    priority=st.integers(-2, 2),
    urgent=st.booleans(),
    not_before=moments,
    rests_until=moments,
)
queues = st.lists(waiting, max_size=12, unique_by=lambda record: record.id)


@given(queues, st.randoms())
def test_the_same_jobs_give_the_same_choice_in_whatever_order_they_are_asked_for(jobs: list[JobRecord], dice) -> None:
    """The table of jobs is read from disk in another order after a restart."""
    chosen = next_job(jobs, NOW, FREE)
    dice.shuffle(jobs)
    assert next_job(jobs, NOW, FREE) == chosen == next_job(list(jobs), NOW, FREE)


@given(queues)
def test_who_goes_first_is_ready_and_nobody_who_is_goes_before_him(jobs: list[JobRecord]) -> None:
    """And something starts whenever something can."""
    chosen = next((one for one in jobs if one.id == next_job(jobs, NOW, FREE)), None)
    ready = [one for one in jobs if is_ready(one, NOW)]
    assert (chosen is None) == (not ready)
    if chosen is not None:
        assert chosen in ready
        assert all(order(chosen) <= order(other) for other in ready)
        equals = [other for other in ready if (other.priority, other.urgent) == (chosen.priority, chosen.urgent)]
        assert chosen.created == min(other.created for other in equals)


@given(queues, st.data())
def test_nobody_starves_within_a_priority(jobs: list[JobRecord], data: st.DataObject) -> None:
    """However many jobs of its own kind come later, a job that is ready waits only for those that were there."""
    ready = [one for one in jobs if is_ready(one, NOW)]
    if not ready:
        return
    mine = data.draw(st.sampled_from(ready))
    before = sum(order(other) < order(mine) for other in ready)
    queue = list(jobs)
    for turn in range(before + 1):
        chosen = next_job(queue, NOW, FREE)
        assert chosen is not None
        if chosen == mine.id:
            return
        queue = [one for one in queue if one.id != chosen]
        queue.append(job(10**7 + turn, age=-turn - 1, priority=mine.priority, urgent=mine.urgent))
    raise AssertionError("others went before it that came after it")


@given(queues, st.sampled_from(sorted(ACTIVE)), st.booleans())
def test_only_an_urgent_job_stops_another_and_never_an_urgent_one(
    jobs: list[JobRecord], state: State, urgent: bool
) -> None:
    """Two urgent jobs would stop each other for ever."""
    active = job(10**8, state=state, urgent=urgent)
    stop = to_stop([*jobs, active], NOW, FREE)
    waits = [one for one in jobs if one.urgent and is_ready(one, NOW)]
    if state is State.STOPPING or urgent or not waits:
        assert stop is None
    else:
        assert stop is not None
        assert (stop.job, stop.after_stop) == (active.id, State.QUEUED)
        back = active.model_copy(update={"state": State.QUEUED})
        assert next_job([*jobs, back], NOW, FREE) == min(waits, key=order).id  # and does not get its place back at once
    assert next_job([*jobs, active], NOW, FREE) is None


def test_nothing_stops_for_a_job_that_could_not_start() -> None:
    """The GPU would do nothing: Redis does not answer, or the urgent job rests after a stop of its own."""
    jobs = [job(1, state=State.RUNNING), job(2, urgent=True)]
    assert to_stop(jobs, NOW, FREE) is not None
    assert to_stop(jobs, NOW, Conditions(queue_answers=False, gpu_free=True)) is None
    assert to_stop(jobs, NOW, Conditions(True, True, resting={jobs[1].id: NOW + timedelta(seconds=1)})) is None


def test_a_pause_stops_what_runs_and_starts_nothing() -> None:
    """The GPU is free for something else: an urgent job does not change that."""
    paused = Conditions(True, True, paused=True)
    assert next_job([job(1, urgent=True)], NOW, paused) is None
    stop = to_stop([job(1, state=State.RUNNING), job(2, urgent=True)], NOW, paused)
    assert stop is not None
    assert (stop.job, stop.after_stop) == (job(1).id, State.QUEUED)
    assert "paused" in stop.reason


# What hinders: power, heat, memory, the hour

ways = st.builds(Hindrance, st.sampled_from(list(Kind)), st.sampled_from(list(Whom)), st.just("something is wrong"))
hindrances = st.lists(ways, max_size=3).map(tuple)
powers = st.sampled_from([None, "any", "ac"])


def free_but(*found: Hindrance) -> Conditions:
    return Conditions(True, True, hindrances=found)


@given(queues, hindrances, st.lists(powers, min_size=12, max_size=12))
def test_nothing_starts_that_would_be_stopped_and_nothing_is_stopped_that_could_start(
    jobs: list[JobRecord], found: tuple[Hindrance, ...], wishes: list[str | None]
) -> None:
    """A job that starts and stops in turns would load its model for ever."""
    jobs = [one.model_copy(update={"power": wish}) for one, wish in zip(jobs, wishes, strict=False)]
    conditions = free_but(*found)
    chosen = next((one for one in jobs if one.id == next_job(jobs, NOW, conditions)), None)
    free = [one for one in jobs if is_ready(one, NOW) and hindering(one, found) is None]
    assert chosen == min(free, key=order, default=None)  # whoever is hindered is passed over, not waited for
    if chosen is not None:
        runs = chosen.model_copy(update={"state": State.RUNNING})
        others = [one for one in jobs if one.id != chosen.id]
        assert to_stop([*others, runs], NOW, conditions) is None
    for one in jobs:
        runs = one.model_copy(update={"state": State.RUNNING})
        stop = to_stop([runs], NOW, conditions)
        assert (stop is not None) == any(way.concerns(one) and way.stops_what_trains for way in found)
        if stop is not None:
            assert (stop.job, stop.after_stop) == (one.id, State.QUEUED)
            assert stop.reason == "something is wrong; it goes on from its checkpoint"


@given(queues, hindrances)
def test_an_urgent_job_that_could_not_start_stops_nothing(jobs: list[JobRecord], found: tuple[Hindrance, ...]) -> None:
    """The GPU would do nothing while one waits for the plug and the other for nothing."""
    active = job(10**8, state=State.RUNNING, power="any")
    stop = to_stop([*jobs, active], NOW, free_but(*found))
    if stop is not None and hindering(active, found) is None:
        back = active.model_copy(update={"state": State.QUEUED})
        started = next_job([*jobs, back], NOW, free_but(*found))
        assert started is not None
        assert started != active.id


@pytest.mark.parametrize(
    ("whom", "keeps"),
    [
        (Whom.ALL, {"plain", "urgent", "ac", "any"}),
        (Whom.WAITING, {"plain", "urgent", "ac", "any"}),
        (Whom.NOT_URGENT, {"plain", "ac", "any"}),
        (Whom.ON_AC, {"ac"}),
        (Whom.NOT_ANY, {"plain", "urgent", "ac"}),
    ],
)
def test_whom_a_hindrance_keeps(whom: Whom, keeps: set[str]) -> None:
    """Urgency outweighs the hour, not an empty battery; what a job says of power outweighs the setting."""
    jobs = {"plain": job(1), "urgent": job(2, urgent=True), "ac": job(3, power="ac"), "any": job(4, power="any")}
    hindrance = Hindrance(Kind.BATTERY, whom, "x")
    assert {name for name, one in jobs.items() if hindrance.concerns(one)} == keeps


def test_nothing_starts_before_the_machine_was_looked_at() -> None:
    """A daemon that starts on battery would start a job only to stop it; what runs already goes on."""
    blind = Conditions(True, True, looked=False)
    assert next_job([job(1)], NOW, blind) is None
    assert to_stop([job(1, state=State.RUNNING)], NOW, blind) is None


@pytest.mark.parametrize(
    ("ran", "minutes", "stops"), [(0.0, 9, False), (0.0, 10, True), (590.0, 1, True), (0.0, -60, False)]
)
def test_a_job_trains_no_longer_than_it_may(ran: float, minutes: int, stops: bool) -> None:
    """All its attempts count; a clock that was set back does not."""
    since = NOW - timedelta(minutes=minutes)
    running = job(1, state=State.RUNNING, max_runtime=600.0, ran=ran, running_since=since)
    stop = to_stop([running], NOW, FREE)
    assert (stop is not None) == stops
    assert stop is None or isinstance(stop, Stop)
    assert stop is None or (stop.after_stop is State.HELD and "0:10:00" in stop.reason and "release" in stop.reason)


# Dependencies

kinds = st.sampled_from(list(State))


@given(st.lists(st.tuples(kinds, st.lists(st.integers(0, 20), max_size=3)), min_size=1, max_size=12))
def test_dependencies_never_run_early(made: list[tuple[State, list[int]]]) -> None:
    """A job is queued only when every job that it waits for is done; a bad end or a missing one asks a person."""
    jobs: dict[str, JobRecord] = {}
    for number, (state, after) in enumerate(made):
        one = job(number, state=state, after=tuple(job(other).id for other in after))
        jobs[one.id] = one
    for one in jobs.values():
        states = [jobs[other].state if other in jobs else None for other in one.after]
        found = standing(one, jobs.get)
        assert (found.state is State.QUEUED) == all(state is State.DONE for state in states)
        bad = any(state in (None, State.FAILED, State.CANCELLED) for state in states)
        assert (found.state is State.HELD) == bad
        assert found.reason or found.state is State.QUEUED


@given(st.lists(st.lists(st.integers(0, 12), max_size=3), min_size=1, max_size=12))
def test_jobs_never_wait_for_each_other(wanted: list[list[int]]) -> None:
    """A job can only name one that was there before it: whatever is asked for, what is accepted can be put in a row."""
    accepted: list[JobRecord] = []
    for number, others in enumerate(wanted, start=100):  # so that no name is a part of another
        names = [f"j{100 + other}" for other in others]
        missing = set(names) - {one.name for one in accepted}
        if missing:
            with pytest.raises(JobRejected, match="no such job"):
                resolve("after", names, accepted)
            continue
        after = resolve("after", names, accepted)
        assert set(after) <= {one.id for one in accepted}
        accepted.append(job(number, age=-number, after=after))
    seen: set[str] = set()
    for one in accepted:
        assert set(one.after) <= seen
        seen.add(one.id)


def test_a_job_is_named_by_its_id_its_name_or_a_part() -> None:
    """Of several with one name the newest is meant."""
    old, new = job(7, age=9), job(8, age=1).model_copy(update={"name": "j7"})
    assert resolve("after", ["j7"], [new, old]) == (new.id,)
    assert resolve("after", [old.id, old.id], [new, old]) == (old.id,)
    assert resolve("after", ["143500-J8"], [new, old]) == (new.id,)
    fuses = new.model_copy(update={"id": "20261122-150000-fuse-j8", "name": "fuse-j8"})
    assert resolve("after", ["j8"], [new, old, fuses]) == (new.id,)
    for name, told in (("nothing", "no such job"), ("143500", "2 jobs")):
        with pytest.raises(JobRejected, match=told):
            resolve("after", [name], [new, old])


# Why it waits


@settings(max_examples=50)
@given(queues)
def test_every_queued_job_can_say_why_it_waits(jobs: list[JobRecord]) -> None:
    """And says that nothing is in its way if, and only if, it is the one to start."""
    chosen = next_job(jobs, NOW, FREE)
    for one in jobs:
        why = why_it_waits(one, jobs, NO_PAUSE, NOW)
        assert (why is not None) == (one.state is State.QUEUED)
        if why is not None:
            assert why.startswith("nothing") == (one.id == chosen)


def test_what_a_job_says_that_it_waits_for() -> None:
    """In the order of what ends its waiting last."""
    mine = job(1, age=1)
    running = job(2, state=State.RUNNING)

    def why(*others: JobRecord, pause: Pause = NO_PAUSE, found: tuple[Hindrance, ...] = (), **more: object) -> str:
        one = mine.model_copy(update=more)
        return why_it_waits(one, [one, *others], pause, NOW, found) or ""

    assert why(running, job(3, age=5)) == f"{running.id} is running and one job goes before it"
    assert why(job(3, age=5), job(4, age=6)) == "2 jobs go before it"
    battery = Hindrance(Kind.BATTERY, Whom.ON_AC, "the machine runs on battery")
    assert why(running, found=(battery,)).startswith(running.id)
    assert why(running, found=(battery,), power="ac") == "the machine runs on battery"
    assert why(found=(battery,), power="ac", pause=Pause(paused=True)) == "the queue is paused until `qlora resume`"
    hindered = job(3, age=5, power="ac")
    assert why(hindered, found=(battery,)).startswith("nothing")  # which will not go before it
    assert "or later" in why(not_before=NOW + timedelta(hours=1))
    assert "tried again" in why(rests_until=NOW + timedelta(hours=1))
    assert why(pause=Pause(paused=True)) == "the queue is paused until `qlora resume`"
    assert why(pause=Pause(paused=True, until=NOW)).startswith("nothing")
