"""How the daemon looks at the machine while jobs run or wait, what it says, and what others read of it."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from qlora_client.listing import overview
from qlora_daemon import neighbour, surroundings
from qlora_daemon.dispatcher import Stop
from qlora_daemon.jobs import JobTable
from qlora_daemon.limits import Limits
from qlora_daemon.neighbour import Neighbour
from qlora_daemon.runner import STOP_SECONDS, Runner
from qlora_daemon.surroundings import BELIEVED, LastKnown, Lookout, Reading
from qlora_engine.host.heat import Heat
from qlora_engine.host.power import Power
from qlora_engine.host.pressure import Pressure
from qlora_engine.job import lock, standing
from qlora_engine.job.errors import ProgramFailed
from qlora_engine.job.events import Event, EventLog
from qlora_engine.job.folder import Home
from qlora_engine.job.hindrance import Hindrance, Kind, Whom, hindrances_in
from qlora_engine.job.hours import Hours
from qlora_engine.job.record import JobRecord, utc_now
from qlora_engine.job.service_status import ServiceStatus
from qlora_engine.job.states import State
from qlora_engine.job.wording import describe
from qlora_engine.wakefulness import Wakefulness
from qlora_worker.queue import JobQueue
from support import recorded

BATTERY = Reading(Power(True, 60))
PLUGGED = Reading(Power(False, 61))


def names(events: list[Event]) -> list[str]:
    return [event["event"] for event in events]


# Looking


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Lookout, SimpleQueue[Reading]]]:
    """A lookout that finds a battery at every look."""
    told: SimpleQueue[Reading] = SimpleQueue()
    monkeypatch.setattr(surroundings, "read", lambda _runs: BATTERY)
    lookout = Lookout(told.put, every=0.05)
    lookout.start()
    yield lookout, told
    lookout.stop()
    lookout.join(5)
    assert not lookout.is_alive()


def test_nobody_looks_while_nobody_cares(looks: tuple[Lookout, SimpleQueue[Reading]]) -> None:
    """A daemon without jobs must not wake a sleeping laptop's processor every few seconds."""
    lookout, told = looks
    with pytest.raises(Empty):
        told.get(timeout=0.2)
    lookout.care(True)
    assert [told.get(timeout=5) for _ in range(3)] == [BATTERY] * 3
    lookout.care(False)
    while not told.empty():
        told.get()
    with pytest.raises(Empty):
        [told.get(timeout=0.2) for _ in range(2)]  # one may have been under way


def test_a_look_that_is_wanted_anew_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a night's sleep what was known in the evening says nothing, and a job may be waiting."""
    told: SimpleQueue[Reading] = SimpleQueue()
    monkeypatch.setattr(surroundings, "read", lambda _runs: PLUGGED)
    lookout = Lookout(told.put, every=600.0)
    lookout.start()
    for _ in range(2):
        lookout.care(True)
        assert told.get(timeout=5) == PLUGGED
    lookout.stop()
    lookout.join(5)


def test_a_program_that_does_not_answer_is_believed_what_it_said_for_a_while() -> None:
    """Under pressure pmset hangs for a moment, and the job must neither start nor stop for that."""
    last, silent = LastKnown(), Reading(heat=Heat.RAISED, unanswered=(("power", "it hangs"),))
    assert last.fill(BATTERY) == BATTERY
    for _ in range(BELIEVED):
        found = last.fill(silent)
        assert (found.power, found.heat) == (BATTERY.power, Heat.RAISED)
    assert last.fill(silent).power is None  # a job that waits for ever would be worse
    assert last.fill(PLUGGED) == PLUGGED


def test_what_cannot_be_asked_is_a_part_of_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """One program that fails takes nothing from the others."""

    def hang() -> Power | None:
        raise ProgramFailed("`pmset -g batt` did not end within 5 s.")

    monkeypatch.setattr(surroundings, "power", hang)
    monkeypatch.setattr(surroundings, "heat", lambda: Heat.HEAVY)
    monkeypatch.setattr(surroundings, "memory_pressure", lambda: Pressure.WARNING)
    assert surroundings.read() == Reading(
        None, Heat.HEAVY, Pressure.WARNING, (("power", "`pmset -g batt` did not end within 5 s."),)
    )


# Knowing


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> tuple[Neighbour, list[Event]]:
    """What the owner has, without the thread."""
    events: list[Event] = []
    limits = Limits(ac_alone=True, hours=Hours.of("22:00-07:00"))
    monkeypatch.setattr(neighbour, "_wall", lambda: datetime(2026, 11, 23, 23, 0))
    return Neighbour(limits, every=600.0, tell=lambda _reading: None, log=EventLog([events.append])), events


def test_what_changes_is_said_once(known: tuple[Neighbour, list[Event]]) -> None:
    """And what is as it should be is no news."""
    here, events = known
    here.care(True)
    assert not here.is_known
    here.heard(PLUGGED)
    assert here.is_known
    assert here.hindrances() == ()
    assert not events
    for _ in range(2):
        here.heard(BATTERY)
        assert [hindrance.kind for hindrance in here.hindrances()] == [Kind.BATTERY]
    here.heard(PLUGGED)
    assert here.hindrances() == ()
    assert names(events) == ["machine.power", "hindrance.began", "machine.power", "hindrance.ended"]
    assert [describe(event) for event in events] == [
        "the machine is on battery, 60% charged",
        "jobs wait: the machine runs on battery",
        "the machine is plugged in, 61% charged",
        "jobs wait no more for: battery",
    ]


def test_without_jobs_nothing_is_known_and_nothing_hinders(known: tuple[Neighbour, list[Event]]) -> None:
    """What was too hot yesterday must not keep today's job for a minute."""
    here, events = known
    here.care(True)
    here.heard(Reading(heat=Heat.CRITICAL, pressure=Pressure.CRITICAL))
    assert {hindrance.kind for hindrance in here.hindrances()} == {Kind.HEAT, Kind.PRESSURE}
    here.care(False)
    assert here.hindrances() == ()
    here.heard(BATTERY)  # a look that was under way
    here.care(True)
    assert not here.is_known
    here.heard(Reading())
    assert here.hindrances() == ()
    assert sorted(names(events)[-2:]) == ["hindrance.ended", "hindrance.ended"]


def test_the_hour_needs_no_look(known: tuple[Neighbour, list[Event]], monkeypatch: pytest.MonkeyPatch) -> None:
    """At seven in the morning the job stops, however seldom the machine is looked at."""
    here, _ = known
    here.care(True)
    here.heard(PLUGGED)
    monkeypatch.setattr(neighbour, "_wall", lambda: datetime(2026, 11, 24, 7, 0))
    assert [hindrance.kind for hindrance in here.hindrances()] == [Kind.HOURS]


def test_a_laptop_that_travels_keeps_the_hours_of_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon runs for months, and its zone is not the one that it started in."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    here = neighbour._wall()
    monkeypatch.setenv("TZ", "America/New_York")
    there = neighbour._wall()
    monkeypatch.undo()
    time.tzset()
    assert here.utcoffset() != there.utcoffset()


# Time that went by


class Nowhere(JobQueue):
    """A queue without Redis."""

    def __init__(self) -> None:
        pass

    def offer(self, job_id: str, attempt: int) -> None:
        pass

    def withdraw(self, job_id: str, attempt: int) -> None:
        pass


def test_time_that_nobody_could_use_is_counted_against_no_job(tmp_path: Path) -> None:
    """Neither as training, nor as time that it was given to reach a checkpoint: it would be killed as it wakes up."""
    home = Home(tmp_path)
    home.make()
    record = JobRecord.new("20261122-143501-a", "a").moved(State.QUEUED)
    home.run(record.id).path.mkdir()
    record.store(home.run(record.id).state)
    jobs = JobTable(home, [])
    assert not list(jobs.load())
    runner = Runner(jobs, Nowhere(), gpu_lock=tmp_path / "gpu.lock", cancel_seconds=1.0, relay=lambda _event: None)
    runner.skip(on_the_wall=3600.0, running=200.0)  # nothing runs: nothing to do
    runner.dispatch(record.id, worker=1)
    since = utc_now()
    jobs.move(record.id, State.RUNNING, running_since=since)
    runner.stop(Stop(record.id, "it is late"))
    runner.skip(on_the_wall=3600.0, running=200.0)
    assert JobRecord.load(home.run(record.id).state).running_since == since + timedelta(hours=1)
    assert runner._active is not None
    due = [when - time.monotonic() for when, _ in runner._active.stop_rungs]
    assert due[0] == pytest.approx(200.0, abs=5.0)
    assert due[1] == pytest.approx(200.0 + STOP_SECONDS, abs=5.0)


# Reading


def said_by_a_daemon(home: Home, *found: Hindrance, pid: int) -> None:
    said = ServiceStatus.none().model_copy(update={"pid": pid, "hindrances": found, "queue_answers": True})
    said.store(home.status)


def test_whoever_lists_jobs_sees_what_each_waits_for(tmp_path: Path) -> None:
    """A job that waits for the plug, beside one that does not, and as long as there is a daemon that knows."""
    home = Home(tmp_path)
    home.make()
    for name, wishes in (("a", {"power": "ac"}), ("b", {}), ("c", {"state": State.RUNNING, "power": "ac"})):
        record = JobRecord.new(f"20261122-14350{len(name)}-{name}", name).moved(State.QUEUED, "accepted")
        home.run(record.id).path.mkdir()
        record.model_copy(update=wishes).store(home.run(record.id).state)
    battery = Hindrance(Kind.BATTERY, Whom.ON_AC, "the machine runs on battery")

    def reasons() -> dict[str, Any]:
        return {summary.record["name"]: summary.reason for summary in overview(home).jobs}

    said_by_a_daemon(home, battery, pid=os.getpid())
    assert hindrances_in(home) == ()  # that daemon is no more
    with lock.acquire(home.daemon_lock, {"pid": os.getpid()}, wait=1.0):
        assert hindrances_in(home) == (battery,)
        assert reasons() == {"a": "the machine runs on battery", "b": "accepted", "c": "accepted"}
        shown = standing.lines(standing.standing(home))
        assert "waits    the machine runs on battery: jobs with power: ac" in shown
        assert ServiceStatus.load(home.status) is not None
        said_by_a_daemon(home, battery, pid=1)  # by the one before it
        assert hindrances_in(home) == ()
        home.status.write_text(json.dumps({"pid": os.getpid()}))  # by an older one
        assert hindrances_in(home) == ()


def test_a_lock_that_cannot_be_looked_at_hides_no_job(tmp_path: Path) -> None:
    """Whether a daemon runs is not known then; the record of a job that waits can be read as well as ever."""
    home = Home(tmp_path)
    home.make()
    record = JobRecord.new("20261122-143501-a", "a").moved(State.QUEUED, "accepted")
    home.run(record.id).path.mkdir()
    record.store(home.run(record.id).state)
    home.daemon_lock.symlink_to(home.daemon_lock)  # ELOOP, for a superuser as well
    found = overview(home)
    assert ([job.reason for job in found.jobs], found.unreadable) == (["accepted"], [])


# Sleep


def test_a_job_is_not_harmed_by_a_machine_that_cannot_be_kept_awake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once, and that is all."""
    recorded.install(tmp_path, "caffeinate", fails="no such assertion")
    monkeypatch.setenv("PATH", recorded.on_path(tmp_path))
    events: list[Event] = []
    failed = threading.Event()
    with Wakefulness(os.getpid(), EventLog([events.append]), wanted=True) as awake:
        while names(events).count("awake.failed") == 0:
            awake.look()
            assert not failed.wait(0.02)
        awake.look()
    assert names(events) == ["awake.held", "awake.failed"]
    assert "no such assertion" in events[1]["what"]
    broken = tmp_path / "caffeinate"
    broken.write_text("no program")
    with Wakefulness(os.getpid(), EventLog([events.append]), wanted=True) as awake:
        awake.look()
    assert "cannot be started" in events[2]["what"]


def test_a_machine_may_be_left_to_sleep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else sees to it, or wants it so."""
    caffeinate = recorded.install(tmp_path, "caffeinate")
    monkeypatch.setenv("PATH", recorded.on_path(tmp_path))
    with subprocess.Popen(["sleep", "60"]) as process, Wakefulness(process.pid, EventLog([]), wanted=False):
        process.kill()
    assert caffeinate.calls == []
