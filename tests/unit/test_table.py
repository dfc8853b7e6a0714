"""All jobs of a home, looked at again and again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qlora_client import table
from qlora_client.table import JobTable
from qlora_engine.job.folder import Home
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.runs.mkdir()
    return home


def job_id(number: int) -> str:
    return f"20261122-1435{number:02}-a"


def store(home: Home, number: int, *states: State) -> None:
    record = JobRecord.new(job_id(number), "a")
    for state in states:
        record = record.moved(state)
    home.run(record.id).path.mkdir(exist_ok=True)
    record.store(home.run(record.id).state)


def states(found: JobTable) -> list[str]:
    return [job.state for job in found.newest_first()]


def test_a_look_sees_what_is_new_changed_and_gone(home: Home) -> None:
    """A list that is kept up to date must not differ from one that is made anew."""
    found = JobTable(home)
    found.look()
    assert states(found) == []
    store(home, 1, State.QUEUED)
    store(home, 2, State.QUEUED)
    assert found.look()
    assert states(found) == ["queued", "queued"]
    store(home, 1, State.QUEUED, State.STARTING)
    assert found.look()
    assert states(found) == ["queued", "starting"]
    assert not found.look()
    home.run(job_id(2)).state.unlink()
    home.run(job_id(2)).path.rmdir()
    assert found.look()
    assert states(found) == ["starting"]


def test_a_job_that_has_ended_is_not_looked_at_until_it_is_named(home: Home) -> None:
    """Of ten thousand jobs nearly all have ended; `qlora retry` brings one back, with an event that names it."""
    store(home, 1, State.QUEUED, State.CANCELLED)
    found = JobTable(home)
    found.look()
    os.utime(home.runs, (1, 1))
    found.look()
    store(home, 1, State.QUEUED, State.CANCELLED, State.QUEUED)
    assert not found.look()
    assert found.look([job_id(1), "20261122-143500-of-another-home"])
    assert states(found) == ["queued"]


def test_of_many_that_wait_all_are_looked_at_in_turn(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand waiting jobs must neither cost a second each second nor be passed over for ever."""
    monkeypatch.setattr(table, "MOST", 3)
    for number in range(8):
        store(home, number, State.QUEUED)
    found = JobTable(home)
    found.look()
    for number in range(8):
        store(home, number, State.QUEUED, State.HELD)
    for _ in range(3):
        found.look()
    assert states(found) == ["held"] * 8


def test_a_record_that_cannot_be_read_is_left_out_until_it_can(home: Home) -> None:
    """One damaged file must not take the screen away from all other jobs."""
    store(home, 1, State.QUEUED)
    store(home, 2, State.QUEUED)
    home.run(job_id(2)).state.write_text("{torn")
    found = JobTable(home)
    found.look()
    assert states(found) == ["queued"]
    store(home, 2, State.QUEUED, State.HELD)
    found.look()
    assert states(found) == ["held", "queued"]


def test_a_home_without_runs_is_empty(tmp_path: Path) -> None:
    """Before the first daemon."""
    found = JobTable(Home(tmp_path / "none"))
    found.look()
    assert states(found) == []
