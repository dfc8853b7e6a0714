"""The client for Python, without a daemon: what it reads, and what it says where it needs one."""

from __future__ import annotations

import json
import os
import threading
from datetime import timedelta
from pathlib import Path

import pytest

import qlora_client
from qlora_client.api import Client, JobHasEnded, WaitEnded
from qlora_client.listing import overview
from qlora_client.records import RecordUnreadable, list_records
from qlora_engine.job.errors import DaemonUnavailable, JobRejected, NoJobFile, NoSuchJob
from qlora_engine.job.lock import held
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from qlora_engine.job.unforeseen import said_by
from qlora_worker import requests
from qlora_worker.connection import connect

JOBS = ["20261122-143501-sql-assistant", "20261122-143502-poems", "20261123-080000-sql-assistant"]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    for name in list(os.environ):
        if name.startswith("QLORAD_"):
            monkeypatch.delenv(name)
    return Client(home=tmp_path / "home")


def make_job(client: Client, job_id: str, *states: State) -> JobRecord:
    run = client.home.run(job_id)
    run.path.mkdir(parents=True)
    record = JobRecord.new(job_id, job_id.split("-", 2)[2])
    for state in states:
        record = record.moved(state)
    record.store(run.state)
    return record


def test_a_home_without_jobs_has_none(client: Client) -> None:
    """A client may be used before the daemon has ever run."""
    assert client.jobs() == []


def test_jobs_come_newest_first(client: Client) -> None:
    """Who lists jobs looks for the latest."""
    for job_id in JOBS:
        make_job(client, job_id)
    assert [job.id for job in client.jobs()] == sorted(JOBS, reverse=True)
    assert [job.id for job in client.jobs(limit=1)] == [JOBS[2]]


def test_what_is_no_run_folder_is_left_alone(client: Client) -> None:
    """The daemon makes run folders under temporary names; a file may lie there too."""
    make_job(client, JOBS[0])
    (client.home.runs / ".making-20261122-143501-x").mkdir()
    (client.home.runs / "notes.txt").touch()
    assert len(client.jobs()) == 1


@pytest.mark.parametrize("content", ["{torn", "[]", "7", "null", "{}"])
def test_a_job_that_vanishes_is_left_out_and_a_damaged_one_is_named(client: Client, content: str) -> None:
    """One bad run folder must not hide all other jobs, nor be hidden itself."""
    for job_id in JOBS:
        make_job(client, job_id)
    client.home.run(JOBS[0]).state.write_text(content)
    (client.home.runs / "20261124-000000-gone").symlink_to(client.home.runs / "nowhere")
    listing = list_records(client.home)
    assert [job.id for job in listing.jobs] == [JOBS[2], JOBS[1]]
    assert listing.unreadable == [JOBS[0]]
    lines = overview(client.home)
    assert ([job.id for job in lines.jobs], lines.unreadable) == ([JOBS[2], JOBS[1]], [JOBS[0]])
    with pytest.raises(RecordUnreadable, match=JOBS[0]):
        client.job(JOBS[0])


@pytest.mark.parametrize("part", ["poems", "143502", JOBS[1], "POEMS", " poems\n"])
def test_any_unambiguous_part_of_an_id_will_do(client: Client, part: str) -> None:
    """Nobody types an id of thirty characters."""
    for job_id in JOBS:
        make_job(client, job_id)
    assert client.job(part).id == JOBS[1]


def test_a_whole_id_is_never_ambiguous(client: Client) -> None:
    """An id may be the beginning of another, which gets a suffix when both are made in one second."""
    make_job(client, "20261122-143501-a")
    make_job(client, "20261122-143501-a-3fc2e1")
    assert client.job("20261122-143501-a").id == "20261122-143501-a"


def test_a_part_with_which_one_name_alone_begins_is_that_job(client: Client) -> None:
    """What fuses a job has its name in its own; people go on typing what they typed before."""
    for job_id in ("20261122-143501-haiku", "20261122-150000-fuse-haiku", "20261122-160000-export-haiku"):
        make_job(client, job_id)
    assert client.job("hai").id == "20261122-143501-haiku"
    assert client.job("fuse").id == "20261122-150000-fuse-haiku"


@pytest.mark.parametrize("part", ["sql", "2026112"])
def test_an_ambiguous_part_names_the_candidates(client: Client, part: str) -> None:
    """The wrong job must never be cancelled by a guess."""
    for job_id in JOBS:
        make_job(client, job_id)
    with pytest.raises(NoSuchJob, match=r"(?s)sql-assistant.*Write more") as raised:
        client.job(part)
    assert JOBS[0] in raised.value.what
    assert JOBS[2] in raised.value.what
    assert raised.value.remedy is not None
    newest, enough = max(JOBS), raised.value.remedy.split()[-1].removesuffix(".")
    assert client.job(enough).id == newest


@pytest.mark.parametrize("part", ["", "..", "/etc", "nothing", "*"])
def test_an_unknown_id_says_what_there_is(client: Client, part: str) -> None:
    """An empty or hostile id must not match a job or leave the runs folder."""
    make_job(client, JOBS[1])
    with pytest.raises(NoSuchJob) as raised:
        client.job(part)
    assert JOBS[1] in str(raised.value.remedy)


def test_events_of_an_unknown_job_fail_at_once(client: Client) -> None:
    """Not at the first event, which a caller may ask for much later."""
    with pytest.raises(NoSuchJob):
        client.events("nothing")


def test_numbers_come_as_columns_each_step_as_it_was_done_last(client: Client) -> None:
    """A plot of a run that was killed must not go back in time."""
    make_job(client, JOBS[0])
    run = client.home.run(JOBS[0])

    def lines(*events: dict[str, object]) -> str:
        return "".join(json.dumps({"ts": "", "level": "info", "job": JOBS[0], **event}) + "\n" for event in events)

    def step(number: int, loss: float | None, attempt: int) -> dict[str, object]:
        return {"event": "training.step", "step": number, "loss": loss, "attempt": attempt}

    run.metrics.write_text(lines(step(1, 4.0, 1), step(2, 3.5, 1), step(3, 3.0, 1), step(2, 3.25, 2), step(3, None, 2)))
    steps = client.metrics("sql-assistant")
    assert steps == {"step": [1, 2, 3], "loss": [4.0, 3.25, None], "attempt": [1, 2, 2]}

    said = {"event": "validation", "step": 3, "split": "valid", "loss": 2.5, "tokens": 90}
    tested = {"event": "validation", "step": 3, "split": "test", "loss": 9.0}
    report = {"event": "training.report", "step": 2, "loss": 3.75}
    run.events.write_text(lines(report, said, tested, {"event": "job.state", "to": "done"}))
    assert client.metrics("sql-assistant", "validation")["loss"] == [2.5]
    assert client.metrics("sql-assistant", "report") == {"step": [2], "loss": [3.75]}
    with pytest.raises(NoSuchJob):
        client.metrics("nothing")
    run.metrics.unlink()
    assert client.metrics("sql-assistant") == {}


def test_the_client_is_had_from_the_package() -> None:
    """One name to know; and nothing else is made up."""
    assert qlora_client.Client is Client
    with pytest.raises(AttributeError, match="Clent"):
        qlora_client.Clent  # type: ignore[attr-defined]  # noqa: B018


def test_waiting_ends_with_the_job(client: Client) -> None:
    """A script that waits goes on when the job is final, with its record."""
    record = make_job(client, JOBS[0])
    path = client.home.run(JOBS[0]).state
    threading.Timer(0.3, record.moved(State.CANCELLED).store, [path]).start()
    assert client.wait("sql", timeout=10).state is State.CANCELLED


def test_waiting_for_a_limited_time_says_that_the_job_goes_on(client: Client) -> None:
    """A time limit is not the end of the job."""
    make_job(client, JOBS[0])
    with pytest.raises(WaitEnded, match="accepted"):
        client.wait("sql", timeout=timedelta(milliseconds=10).total_seconds())


def test_submitting_without_a_daemon_says_how_to_start_one(client: Client, tmp_path: Path) -> None:
    """The first thing that a new user meets; it must come at once and help."""
    job = tmp_path / "job.yaml"
    job.write_text("model: smollm2\ndata: data\n")
    with pytest.raises(DaemonUnavailable, match="qlorad"):
        client.submit(job)


def test_a_file_that_is_no_job_file_is_refused_before_anybody_is_asked(client: Client, tmp_path: Path) -> None:
    """A binary of gigabytes must not travel to the daemon; what is wrong names the line."""
    job = tmp_path / "job.yaml"
    job.write_text("model: smollm2\nmodel: other\n")
    with pytest.raises(JobRejected, match="line 2"):
        client.submit(job)
    job.write_bytes(bytes(range(256)) * 10_000)
    with pytest.raises(JobRejected, match="bytes"):
        client.submit(job)


@pytest.mark.parametrize("name", ["missing.yaml", "folder", "dangling.yaml"])
def test_a_missing_job_file_is_said_to_be_missing(client: Client, tmp_path: Path, name: str) -> None:
    """A wrong path is the most frequent mistake; it must not read like a broken file."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling.yaml").symlink_to("nowhere")
    with pytest.raises(NoJobFile) as raised:
        client.submit(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value.where)


def test_cancelling_is_idempotent_and_refuses_what_has_ended(client: Client) -> None:
    """Cancelled twice is cancelled; a finished job cannot be, and neither needs the daemon."""
    make_job(client, JOBS[0], State.CANCELLED)
    make_job(client, JOBS[1], State.FAILED)
    make_job(client, "20261124-000000-waits")
    assert client.cancel(JOBS[0]).state is State.CANCELLED
    with pytest.raises(JobHasEnded, match="failed"):
        client.cancel("poems")
    with pytest.raises(DaemonUnavailable):
        client.cancel("waits")


def test_a_queue_that_does_not_answer_is_told_in_words(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the daemon stops, or its server hangs; the class of an exception is nothing for people."""
    monkeypatch.setattr(requests, "connect", lambda settings, **_: connect(settings, timeout=1.0))
    client.home.make()
    with held(client.home.daemon_lock, {"pid": os.getpid()}), pytest.raises(DaemonUnavailable) as raised:
        client.pause()
    assert raised.value.what == "The daemon's queue does not answer (no connection: No such file or directory)."


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("Model type x not supported."), "Model type x not supported"),
        (ValueError("one\ntwo"), "one two"),
        (KeyError("rope_theta"), "'rope_theta' is missing"),
        (FileNotFoundError(2, "No such file", "/x"), "No such file: /x"),
        (ConnectionResetError(104, "Connection reset"), "Connection reset"),
        (AssertionError(), "an error without words (AssertionError)"),
    ],
)
def test_what_a_library_says_is_told_without_the_name_of_a_class(error: Exception, said: str) -> None:
    """Only where it says nothing else there is no better."""
    assert said_by(error) == said
