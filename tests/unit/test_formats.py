"""What is on disk is read by every later version, and left alone by every earlier one."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qlora_client.cli import main
from qlora_client.listing import overview
from qlora_client.records import load_record
from qlora_daemon.claims import read_claim
from qlora_daemon.jobs import JobTable
from qlora_engine.job import durable, formats, stored
from qlora_engine.job.errors import JobRejected
from qlora_engine.job.events import Event
from qlora_engine.job.exits import ExitRecord
from qlora_engine.job.folder import Home
from qlora_engine.job.formats import Format, NewerFormat
from qlora_engine.job.pause import Pause
from qlora_engine.job.record import JobRecord
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.states import State
from qlora_engine.report.read import read_run
from qlora_worker import letters
from qlora_worker.requests import _parse

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format-1"
FIRST, SECOND = "20261123-122400-first", "20261123-122410-second"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home as a daemon of format 1 left it: a job that is done, one that stopped at a checkpoint, a pause."""
    shutil.copytree(FIXTURE, tmp_path / "home")
    return Home(tmp_path / "home")


def change(path: Path, **keys: Any) -> dict[str, Any]:
    """Change a JSON file; what it was."""
    before: dict[str, Any] = json.loads(path.read_bytes())
    durable.write_json(path, {**before, **keys})
    return before


def test_the_stored_home_of_format_1_is_read_as_it_was(home: Home) -> None:
    """Runs outlive the version that made them."""
    jobs = JobTable(home, [])
    assert list(jobs.load()) == []
    first, second = jobs.by_id[FIRST], jobs.by_id[SECOND]
    assert (first.state, second.state, second.after) == (State.DONE, State.QUEUED, (FIRST,))
    assert second.checkpoint_step == 44
    assert ResolvedJob.load(home.run(SECOND).spec).spec.iters == 200
    ended = ExitRecord.load(home.run(FIRST).exit(1))
    assert ended is not None
    assert ended.code == 0
    assert Pause.load(home.pause).paused
    assert read_run(home.run(FIRST)).micro_batches


def test_steps_lead_from_every_older_format_in_order_and_change_nothing_that_they_are_given() -> None:
    """A run may be many versions old; and a step that changes its input would hide what it was if it fails."""
    form = Format("thing", 4, {2: lambda v: v | {"b": v["a"] + 1}, 3: lambda v: {k: v[k] for k in v if k != "a"}})
    stored_value = {"format": 2, "a": 1, "list": [1]}
    before = copy.deepcopy(stored_value)
    assert form.upgraded(stored_value) == {"format": 4, "b": 2, "list": [1]}
    assert stored_value == before
    assert form.upgraded({"format": 4, "x": 0}) == {"format": 4, "x": 0}
    with pytest.raises(ValueError, match="of format 1 cannot be read any more"):
        form.upgraded({"a": 1})
    with pytest.raises(NewerFormat, match="it has format 5, and this one reads 4"):
        form.upgraded({"format": 5})
    with pytest.raises(ValueError, match="is not the format"):
        form.upgraded({"format": "4"})


def test_a_gap_between_the_steps_is_noticed_at_once() -> None:
    """Otherwise only the user with a run of that age would notice."""
    with pytest.raises(AssertionError, match="leave a gap"):
        Format("thing", 4, {1: dict, 3: dict})


@pytest.fixture
def second_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version before whose format `reason` was called `why`, and which marks every resolved job that it upgrades."""
    record = Format("job record", 1, {0: lambda v: {k: v[k] for k in v if k != "why"} | {"reason": v["why"]}})
    spec = Format("resolved job", 1, {0: lambda v: v | {"spec": v["spec"] | {"project_name": "upgraded"}}})
    for module in (formats, stored):
        monkeypatch.setattr(module, "RECORD", record)
        monkeypatch.setattr(module, "SPEC", spec)
    monkeypatch.setattr("qlora_engine.job.record.RECORD", record)
    monkeypatch.setattr("qlora_engine.job.resolved.SPEC", spec)
    monkeypatch.setattr("qlora_client.listing.RECORD", record)


def as_older(home: Home, job_id: str) -> None:
    """Put a run folder into the format that `second_format` calls 0."""
    run = home.run(job_id)
    record = json.loads(run.state.read_bytes())
    why = record.pop("reason")
    durable.write_json(run.state, record | {"format": 0, "why": why})
    change(run.spec, format=0)


@pytest.mark.usefixtures("second_format")
def test_a_newer_daemon_brings_older_runs_up_and_says_so(home: Home) -> None:
    """On disk, once, with the record last; the other runs are not touched."""
    expected = JobRecord.load(home.run(SECOND).state)
    as_older(home, SECOND)
    untouched = home.run(FIRST).state.stat().st_mtime_ns
    said: list[Event] = []
    jobs = JobTable(home, [said.append])
    assert list(jobs.load()) == []
    assert jobs.by_id[SECOND] == expected == JobRecord.load(home.run(SECOND).state)
    assert json.loads(home.run(SECOND).state.read_bytes())["format"] == 1
    assert ResolvedJob.load(home.run(SECOND).spec).spec.project_name == "upgraded"
    assert [(event["event"], event["from"], event["to"]) for event in said] == [("run.upgraded", 0, 1)]
    assert home.run(FIRST).state.stat().st_mtime_ns == untouched


@pytest.mark.usefixtures("second_format")
@pytest.mark.parametrize("writes", [0, 1])
def test_an_upgrade_that_is_cut_short_is_finished_the_next_time(
    home: Home, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """A power cut in the midst of it leaves each file old or new, and no file is upgraded twice."""
    expected = JobRecord.load(home.run(SECOND).state)
    as_older(home, SECOND)
    write, left = durable.write_json, [None] * writes

    def die_after(path: Path, value: Any) -> None:
        if not left:
            raise KeyboardInterrupt  # stands for SIGKILL: nothing here catches it
        left.pop()
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_json", die_after)
        with pytest.raises(KeyboardInterrupt):
            list(JobTable(home, []).load())
    jobs = JobTable(home, [])
    assert list(jobs.load()) == []
    assert jobs.by_id[SECOND] == expected
    assert ResolvedJob.load(home.run(SECOND).spec).spec.project_name == "upgraded"


@pytest.mark.usefixtures("second_format")
def test_a_client_reads_older_runs_without_writing_them(home: Home) -> None:
    """Only the daemon writes records, and `qlora ls` may be the first that is run after an upgrade."""
    as_older(home, SECOND)
    before = home.run(SECOND).state.read_bytes()
    assert load_record(home.run(SECOND)).reason.startswith("the queue is paused")
    assert overview(home).jobs[0].reason.startswith("the queue is paused")
    assert ResolvedJob.load(home.run(SECOND).spec).spec.project_name == "upgraded"
    assert home.run(SECOND).state.read_bytes() == before


def test_an_older_daemon_leaves_newer_runs_alone(home: Home) -> None:
    """Not lost, not deleted, not started: they wait for the version that made them."""
    change(home.run(SECOND).state, format=2, shape="another")
    before = home.run(SECOND).state.read_bytes()
    jobs = JobTable(home, [])
    ((name, error),) = jobs.load()
    assert (name, type(error)) == (SECOND, NewerFormat)
    assert SECOND not in jobs.by_id
    assert jobs.folders() == [FIRST]  # so that no reconciliation ever drops or reads it
    assert home.run(SECOND).state.read_bytes() == before


@pytest.mark.parametrize("keys", [{"format": 2}, {"format": 2, "state": "dreaming"}, {"shape": "another"}])
def test_an_older_client_says_what_it_cannot_read(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], keys: dict[str, Any]
) -> None:
    """One clear message instead of a wrong picture of the job, by its number or by a key that nobody knows here."""
    monkeypatch.setenv("QLORAD_HOME", str(home.path))
    change(home.run(SECOND).state, **keys)
    assert main(["show", "second"]) == 65
    said = capsys.readouterr().err
    assert "This job record was made by a newer qlorad" in said
    assert "Install that version again" in said
    if "format" in keys:
        assert main(["ls"]) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if SECOND in line)
        assert "newer" in line
        assert "made by a newer qlorad (format 2; this one reads 1)" in line


def test_whatever_else_is_newer_is_refused_as_such(home: Home, tmp_path: Path) -> None:
    """A file that is only half understood is worse than one that is not read."""
    change(home.run(SECOND).spec, format=2)
    with pytest.raises(NewerFormat, match="resolved job"):
        ResolvedJob.load(home.run(SECOND).spec)
    change(home.run(FIRST).spec, spec={"model": "x", "colour": "red"})
    with pytest.raises(NewerFormat, match=r"it has `spec\.colour`"):
        ResolvedJob.load(home.run(FIRST).spec)
    change(home.run(FIRST).exit(1), format=2)
    with pytest.raises(NewerFormat, match="attempt's end"):
        ExitRecord.load(home.run(FIRST).exit(1))
    claim = {"format": 2, "name": "a.yaml", "kind": "file", "problem": None, "colour": "red"}
    (tmp_path / "claim.json").write_text(json.dumps(claim))
    with pytest.raises(NewerFormat, match="claim on a submission"):
        read_claim(tmp_path)


def test_a_damaged_file_is_not_taken_for_a_newer_one(home: Home) -> None:
    """The remedy for it is another."""
    home.run(SECOND).state.write_text('{"format": 1, "id"')
    with pytest.raises(ValueError, match="Expecting") as raised:
        JobRecord.load(home.run(SECOND).state)
    assert not isinstance(raised.value, NewerFormat)


def test_a_request_of_a_newer_client_is_answered_so() -> None:
    """It waits for an answer, under its key, and is told which of the two to upgrade."""
    request = {"format": 2, "key": "0" * 32, "kind": "dance", "payload": {}}
    received = _parse((b"1-1", {b"request": json.dumps(request).encode()}))
    assert (received.request, received.key) == (None, "0" * 32)
    assert received.problem == "it comes from a newer client than this daemon"


def test_a_submission_that_a_newer_client_left_is_rejected_as_such(tmp_path: Path) -> None:
    """Not as a file with a strange key, which nobody could mend."""
    path = tmp_path / "a.submission"
    path.write_text(json.dumps({"format": 2, "key": "0" * 32, "dance": {}}))
    with pytest.raises(JobRejected, match=r"a\.submission was left by a newer qlora than this daemon"):
        letters.read(path)


def test_a_newer_pause_holds(home: Home) -> None:
    """Training that starts although somebody paused it is the worse mistake."""
    change(home.pause, format=2, colour="red")
    assert Pause.load(home.pause).paused
