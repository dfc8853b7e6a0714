"""Which job of a sweep is ended for another, and how a sweep is ranked: decisions from what the run folders say."""

from __future__ import annotations

import json
import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_client.api import Client
from qlora_client.cli import main
from qlora_client.completion import job_ids
from qlora_client.groups import Member, find_group, ranked
from qlora_client.listing import in_lines, overview
from qlora_client.waiting import group_exit_code
from qlora_daemon.jobs import JobTable
from qlora_daemon.orders import Orders
from qlora_daemon.runner import Runner
from qlora_engine.job import naming
from qlora_engine.job.errors import JobRejected
from qlora_engine.job.events import Event, EventLog
from qlora_engine.job.exits import ExitRecord
from qlora_engine.job.folder import Home
from qlora_engine.job.record import JobRecord, utc_now
from qlora_engine.job.states import ACTIVE, State
from qlora_engine.job.turn import standing
from qlora_engine.job.validations import outdone, validations_of
from qlora_worker.connection import connect, keys_of
from qlora_worker.messages import Request
from qlora_worker.queue import JobQueue
from qlora_worker.settings import Settings

GROUP = "20261122-143501-poems"
LOSSES = st.dictionaries(st.integers(0, 50), st.floats(0.01, 10) | st.just(math.inf), max_size=6)


@given(st.integers(0, 50), st.floats(0.01, 10) | st.just(math.inf), st.dictionaries(st.text(), LOSSES, max_size=4),
       st.floats(0.01, 2))  # fmt: skip
def test_a_job_is_ended_exactly_when_another_was_so_much_better_by_then(
    step: int, loss: float, others: dict[str, dict[int, float]], share: float
) -> None:
    """Against what was reached later it would lose always; before training it says nothing of its settings."""
    known = [one for losses in others.values() for at, one in losses.items() if 0 < at <= step and one < math.inf]
    found = outdone(step, loss, others, share)
    assert (found is not None) == (step > 0 and bool(known) and loss > min(known) * (1 + share))
    if found is not None:
        assert found.best == min(known)
        assert found.best in others[found.by].values()
        assert "at step" in found.reason("x")


def test_the_reason_says_by_how_much_and_of_whom() -> None:
    """Whoever finds it ended in the morning must be able to judge that."""
    found = outdone(50, 2.3048, {"a": {0: 1.0, 25: 1.8, 50: 1.72, 75: 0.1}, "b": {50: 1.9}}, 0.2)
    assert found is not None
    assert found.reason("rank=8") == "validation loss 2.305 at step 50, 34% above the 1.720 of rank=8"
    far = outdone(50, 17.2, {"a": {50: 1.72}}, 0.2)
    assert far is not None
    assert far.reason("rank=8") == "validation loss 17.200 at step 50, 10 times the 1.720 of rank=8"
    lost = outdone(50, math.inf, {"a": {50: 1.72}}, 0.2)
    assert lost is not None
    assert lost.reason("rank=8") == "validation loss at step 50 is no number, and rank=8 had 1.720"


# Of run folders


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("QLORAD_HOME", str(tmp_path))
    home = Home(tmp_path)
    home.make()
    return home


def make(home: Home, rank: int, losses: dict[int, float | None], state: State = State.DONE, **facts: Any) -> JobRecord:
    """A job of the sweep with these validations."""
    job_id = f"{GROUP}-rank-{rank}"
    record = JobRecord.new(job_id, f"poems rank={rank}", request=f"key/{rank}")
    facts = {"steps": 100, "attempt": 1} | facts
    record = record.noting(state=state, group=GROUP, settings={"rank": rank}, **facts)
    record = record.noting(created=record.created + timedelta(microseconds=rank))
    home.run(job_id).path.mkdir()
    record.store(home.run(job_id).state)
    lines = [line("training.started", job_id)]
    lines += [line("validation", job_id, step=step, split="valid", loss=loss) for step, loss in losses.items()]
    home.run(job_id).events.write_text("".join(lines))
    return record


def line(name: str, job: str, **fields: Any) -> str:
    return json.dumps({"ts": "2026-11-22T14:35:01.000+00:00", "event": name, "job": job, "attempt": 1} | fields) + "\n"


def test_a_step_that_was_validated_twice_counts_as_the_last_time(home: Home) -> None:
    """Training went back to a checkpoint in between."""
    job = make(home, 4, {10: 3.0, 20: None})
    with home.run(job.id).events.open("a") as file:
        file.write(line("validation", job.id, step=10, split="valid", loss=2.0))
        file.write(line("validation", job.id, step=20, split="test", loss=1.0))
        file.write('{"event": "validation", "step"')  # a line that is just being written
    assert validations_of(home.run(job.id)) == {10: 2.0, 20: math.inf}


def test_the_best_comes_first_and_those_without_a_loss_last(home: Home) -> None:
    """The loss before training is that of the model as it came."""
    jobs = [
        make(home, 1, {0: 0.1}),
        make(home, 2, {0: 5.0, 10: 2.0, 20: 1.0, 30: 4.0}),
        make(home, 3, {10: 0.5, 20: None}),
        make(home, 4, {}, State.QUEUED),
    ]
    found = ranked(Member(job, validations_of(home.run(job.id))) for job in jobs)
    assert [one.job.settings["rank"] for one in found] == [3, 2, 1, 4]
    assert found[0].best == (0.5, 10)
    assert found[0].last == (math.inf, 20)
    assert (found[1].best, found[1].last) == ((1.0, 20), (4.0, 30))


def test_a_sweep_is_named_by_any_part_of_its_id_that_nothing_else_has(home: Home) -> None:
    """As a job is; where both could be meant the job is."""
    for rank in (4, 8):
        make(home, rank, {10: 1.0 / rank})
    for part in (GROUP, "poems", "143501-POEMS"):
        found = find_group(home, part)
        assert found is not None
        assert [one.job.settings["rank"] for one in found.members] == [8, 4]
    assert find_group(home, "rank-4") is None
    assert find_group(home, "rank") is None, "it is in two ids and not in the sweep's"
    assert Client(home.path).job("rank-8").id == f"{GROUP}-rank-8"
    other = JobRecord.new("20261122-150000-poems", "poems").moved(State.QUEUED)
    home.run(other.id).path.mkdir()
    other.store(home.run(other.id).state)
    assert find_group(home, "poems") is None
    assert find_group(home, GROUP) is not None


def test_show_ranks_a_sweep_in_eighty_columns_and_says_why_one_ended(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is what the sweep was made for."""
    make(home, 4, {10: 2.0}, State.CANCELLED, reason="validation loss 2.000 at step 10, 100% above …", outdone_by="x")
    make(home, 8, {10: 1.0, 20: 0.9})
    assert main(["show", "poems"]) == 0
    _, counts, headings, first, second, why, best = capsys.readouterr().out.splitlines()
    assert counts == "2 jobs: 1 done, 1 cancelled"
    assert headings.split() == ["#", "rank", "STATE", "STEP", "LAST", "BEST", "AT", "ID"]
    assert first.split() == ["1", "8", "done", "0/100", "0.900", "0.900", "20", f"{GROUP}-rank-8"]
    assert second.split()[:3] == ["2", "4", "cancelled"]
    assert why.strip().startswith("2  validation loss 2.000")
    assert best == f"Best: {GROUP}-rank-8"
    assert main(["show", "poems", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(job["rank"], job["settings"], job["best_loss"]) for job in shown["jobs"]] == [
        (1, {"rank": 8}, 0.9),
        (2, {"rank": 4}, 2.0),
    ]


def test_one_job_is_asked_for_by_name_where_a_sweep_is_named(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """`qlora logs SWEEP` has several answers; the error says how to come to one."""
    for rank in (4, 8):
        make(home, rank, {})
    assert main(["logs", "poems"]) == 66
    said = capsys.readouterr().err
    assert f"{GROUP} is a sweep of 2 jobs" in said
    assert f"qlora show {GROUP}" in said


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ([State.DONE, State.DONE], 0),
        ([State.DONE, None], 0),
        ([State.DONE, State.CANCELLED], 75),
        ([State.CANCELLED, State.FAILED], 70),
    ],
    ids=["done", "one outdone", "one cancelled", "one failed"],
)
def test_a_script_that_waits_for_a_sweep_learns_how_it_went(home: Home, states: list[State | None], code: int) -> None:
    """That poor jobs are ended is no failure of the sweep; what a person ended, or what failed, is."""
    for rank, state in enumerate(states):
        make(home, rank, {}, state or State.CANCELLED, outdone_by=None if state else "another")
    assert group_exit_code(Client(home.path).group("poems")) == code


def test_the_list_shows_a_sweep_as_one_line_and_counts_it_as_one(home: Home) -> None:
    """Two hundred jobs of last night must not push everything else from the list."""
    older, newer = "20261121-000000-older", "20261123-000000-newer"
    for job_id in (older, newer):
        home.run(job_id).path.mkdir()
        JobRecord.new(job_id, job_id).moved(State.QUEUED).store(home.run(job_id).state)
    for rank, state in ((1, State.DONE), (2, State.RUNNING), (3, State.QUEUED)):
        make(home, rank, {}, state)
    shown = in_lines(overview(home, 2, together=True).jobs)
    assert [(one.id, one.state, one.jobs) for one in shown] == [(newer, "queued", None), (GROUP, "running", 3)]
    assert shown[1].reason == "3 jobs: 1 queued, 1 running, 1 done"
    assert [one.id for one in in_lines(overview(home, 3, together=True).jobs)][2] == older
    assert len(overview(home, 2).jobs) == 2


def test_a_sweeps_id_and_name_are_completed(home: Home) -> None:
    """It is typed as a job's is."""
    for rank in (4, 8):
        make(home, rank, {})
    assert job_ids("2026")[0] == GROUP
    assert job_ids("poe") == ["poems", "poems-rank-8", "poems-rank-4"]
    other = JobRecord.new("20261122-150000-poems", "poems").moved(State.QUEUED)
    home.run(other.id).path.mkdir()
    other.store(home.run(other.id).state)
    assert "poems" not in job_ids("poe")


# Waiting for one


def test_a_job_comes_after_all_jobs_of_a_sweep_but_not_after_its_poor_ones(home: Home) -> None:
    """That some are ended is how a sweep goes well."""
    first, second = make(home, 4, {}), make(home, 8, {}, State.QUEUED)
    after = naming.resolve("after", ["poems"], [first, second])
    assert set(after) == {first.id, second.id}
    waits = JobRecord.new("20261123-000000-next", "next").noting(after=after)

    def stands(other: JobRecord) -> State:
        return standing(waits, {first.id: first, second.id: other}.get).state

    ended = second.noting(state=State.CANCELLED)
    assert stands(second) is State.BLOCKED
    assert stands(ended) is State.HELD
    assert stands(ended.noting(outdone_by=first.id)) is State.QUEUED
    with pytest.raises(JobRejected, match="2 jobs"):
        naming.resolve("after", ["rank"], [first, second])


# In the daemon


def daemon_of(home: Home) -> tuple[JobTable, Runner, list[Event]]:
    """The parts that decide, without a server: nothing is in Redis."""
    settings = Settings(home=home.path)
    events: list[Event] = []
    jobs = JobTable(home, [events.append])
    assert not list(jobs.load())
    queue = JobQueue(connect(settings, timeout=1.0), keys_of(settings))
    runner = Runner(jobs, queue, gpu_lock=home.path / "gpu.lock", cancel_seconds=1.0, relay=events.append)
    return jobs, runner, events


def adopt(home: Home) -> list[Event]:
    """What a daemon that starts makes of an attempt that nobody follows."""
    _, runner, events = daemon_of(home)
    runner.adopt()
    return events


@pytest.mark.parametrize(
    ("facts", "ended", "expected"),
    [
        ({}, None, State.CANCELLED),
        ({}, 75, State.CANCELLED),
        ({}, -9, State.CANCELLED),
        ({}, 0, State.DONE),
        ({"stop_worse_than": 0.6}, None, State.QUEUED),
        ({"stop_worse_than": None}, None, State.QUEUED),
        ({"steps": 20}, None, State.QUEUED),
        ({"state": State.STOPPING, "after_stop": State.HELD, "stop_reason": "held on request"}, None, State.HELD),
    ],
    ids=["lost", "stopped", "crashed", "finished", "near", "not asked", "at its end", "held by a person"],
)
def test_a_validation_that_was_just_written_ends_the_job_after_a_restart_too(
    home: Home, facts: dict[str, Any], ended: int | None, expected: State
) -> None:
    """A daemon killed between the validation and its decision must come to the same; a person's wish goes before."""
    best = make(home, 4, {10: 1.0, 20: 0.9})
    job = make(home, 8, {0: 9.0, 20: 1.4}, **{"state": State.RUNNING, "stop_worse_than": 0.5} | facts)
    if ended is not None:
        now = utc_now()
        ExitRecord.of(ended, attempt=1, started=now, ended=now).store(home.run(job.id).exit(1))
    events = adopt(home)
    found = JobRecord.load(home.run(job.id).state)
    assert found.state is expected
    assert found.outdone_by == (best.id if expected is State.CANCELLED else None)
    if expected is State.CANCELLED:
        assert found.reason == "validation loss 1.400 at step 20, 56% above the 0.900 of rank=4"
        assert [event["by"] for event in events if event["event"] == "job.outdone"] == [best.id]
    assert not any(job.state in ACTIVE for job in Client(home.path).jobs())


def test_a_decision_on_disk_is_carried_out_by_the_next_daemon(home: Home) -> None:
    """The daemon was killed while the job stopped: it must not train on."""
    make(home, 4, {20: 0.9})
    job = make(
        home, 8, {}, State.STOPPING, after_stop=State.CANCELLED, stop_reason="validation loss …", outdone_by="x",
        stop_worse_than=0.5,
    )  # fmt: skip
    adopt(home)
    found = JobRecord.load(home.run(job.id).state)
    assert (found.state, found.reason, found.outdone_by) == (State.CANCELLED, "validation loss …", "x")


def test_a_job_that_a_person_tries_again_is_not_ended_for_another_once_more(home: Home) -> None:
    """Whoever wants to see how it goes on may."""
    make(home, 4, {20: 0.9})
    job = make(home, 8, {}, State.CANCELLED, outdone_by="x", stop_worse_than=0.5)
    jobs, runner, _ = daemon_of(home)
    Orders(home, jobs, runner, EventLog([])).carry_out(Request(key="0" * 32, kind="retry", payload={"job": job.id}))
    found = JobRecord.load(home.run(job.id).state)
    assert (found.state, found.outdone_by, found.stop_worse_than) == (State.QUEUED, None, None)
