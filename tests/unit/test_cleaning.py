"""`qlora clean`: what may go, what stays and why, and that nothing is ever half gone."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from qlora_client import clean
from qlora_client.cli import main
from qlora_client.records import Listing, list_records
from qlora_daemon.jobs import JobTable
from qlora_daemon.orders import Orders
from qlora_daemon.runner import Runner
from qlora_engine.job import disposal, lock
from qlora_engine.job.cleaning import Part, Wish, plan
from qlora_engine.job.disposal import bytes_of, dispose, leftovers
from qlora_engine.job.events import Event, EventLog
from qlora_engine.job.folder import Home
from qlora_engine.job.record import JobRecord, utc_now
from qlora_engine.job.states import FINAL, State
from qlora_worker.connection import connect, keys_of
from qlora_worker.messages import Request
from qlora_worker.queue import JobQueue
from qlora_worker.settings import Settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in list(os.environ):
        if name.startswith("QLORAD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("QLORAD_HOME", str(tmp_path / "h"))
    home = Home(tmp_path / "h")
    home.make()
    return home


def make(
    home: Home, name: str, state: State = State.DONE, *, days: float = 0, model: str = "tiny", **keys: Any
) -> JobRecord:
    """A run folder with a checkpoint, an adapter, and what was dropped for it."""
    job_id = f"20261122-143501-{name}"
    run = home.run(job_id)
    ended = utc_now() - timedelta(days=days)
    record = JobRecord.new(job_id, name, content=f"digest-{name}", request=f"key-{name}").noting(
        state=state, ended=ended, after=keys.pop("after", ())
    )
    sizes = {run.checkpoints / "step-000010": 50_000, run.adapters: 20_000, home.accepted / job_id: 9000}
    for folder, size in sizes.items():
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(os.urandom(size))
    record.store(run.state)
    run.spec.write_text(json.dumps({"format": 1, "spec": {"model": model}, "model_path": None, **keys}))
    return record


def cleaned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What `qlora clean --json` says."""
    assert main(["clean", "--json", *arguments]) == 0
    return dict(json.loads(capsys.readouterr().out))


def names(home: Home) -> list[str]:
    """The jobs that are there, by name."""
    return sorted(path.name.split("-", 2)[2] for path in home.runs.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize(
    ("wish", "go"),
    [
        (Wish(Part.RUN, keep=2), ["c", "d"]),
        (Wish(Part.RUN, keep=0), ["a", "b", "c", "d"]),
        (Wish(Part.RUN, older=timedelta(days=5)), ["b", "c", "d"]),
        (Wish(Part.RUN, keep=3, older=timedelta(days=5)), ["d"]),
        (Wish(Part.RUN, keep=1, older=timedelta(days=35)), ["d"]),
    ],
)
def test_both_rules_must_hold_and_the_newest_ends_stay(home: Home, wish: Wish, go: list[str]) -> None:
    """`--keep 20 --older 30d` must never take one of the last twenty, nor anything of this month."""
    jobs = [make(home, name, days=days) for name, days in (("a", 1), ("b", 10), ("c", 30), ("d", 40))]
    found = plan(jobs, wish, {}, utc_now())
    assert sorted(job.split("-")[-1] for job in found.jobs) == go
    assert [job.split("-")[-1] for job in found.jobs] == go[::-1]


@pytest.mark.parametrize("state", sorted(set(State) - FINAL))
def test_a_job_that_has_not_ended_never_goes(home: Home, state: State) -> None:
    """Whatever a client believes: the one who renames looks at the record of now."""
    job = make(home, "a", state)
    assert plan([job], Wish(Part.RUN, keep=0), {}, utc_now()).jobs == ()
    disposed = dispose(home, {job.id: job}, (), [job.id], Part.RUN)
    assert (disposed.gone, disposed.kept) == ([], {job.id: f"it is {state}"})
    assert names(home) == ["a"]


@pytest.mark.parametrize("how", ["after", "adapter", "model", "data"])
@pytest.mark.parametrize("state", [State.QUEUED, State.BLOCKED, State.HELD])
def test_what_a_job_that_goes_on_needs_stays(
    home: Home, capsys: pytest.CaptureFixture[str], state: State, how: str
) -> None:
    """It would be held, or fail, for want of a job that its owner has just cleaned away."""
    needed = make(home, "needed", days=99)
    below = str(home.run(needed.id).adapters / "adapters.safetensors")
    names_it: dict[str, Any] = {
        "after": {"after": (needed.id,)},
        "adapter": {"resume_adapter_file": below},
        "model": {"model_path": below},
        "data": {"data": {"train": {"path": str(home.accepted / needed.id / "data" / "train.jsonl")}}},
    }[how]
    needs = make(home, "needs", state, **names_it)
    said = cleaned(capsys, "--keep", "0")
    assert said["kept"] == {needed.id: f"{needs.id} needs it"}
    assert names(home) == ["needed", "needs"]


def test_what_a_job_that_cannot_be_read_names_stays(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """A newer qlorad has made it, and will go on with it."""
    needed, other = make(home, "needed"), make(home, "other")
    newer = home.run("20261122-143501-newer")
    newer.path.mkdir()
    newer.state.write_text(json.dumps({"format": 9, "follows": {"which": needed.id}}))
    said = cleaned(capsys, "--keep", "0", "--models")
    assert said["kept"][needed.id] == f"{newer.id} needs it"
    assert [item["name"] for item in said["items"]] == [other.id]
    assert names(home) == ["needed", "newer"]


def test_a_dry_run_changes_nothing_and_says_the_same(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """It is what people decide by."""
    jobs = [make(home, name, days=40) for name in ("a", "b")]
    dry = cleaned(capsys, "--older", "30d", "--dry-run")
    assert names(home) == ["a", "b"]
    wet = cleaned(capsys, "--older", "30d")
    assert dry["items"] == wet["items"]
    assert dry["bytes"] == wet["bytes"] >= 2 * 79_000
    assert [item["name"] for item in wet["items"]] == [job.id for job in jobs] or len(wet["items"]) == 2
    assert names(home) == []
    assert list(home.accepted.iterdir()) == list(leftovers(home)) == []


def test_the_checkpoints_of_what_is_done_go_and_its_result_stays(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """And those that `qlora retry` would go on from stay."""
    done, failed = make(home, "done"), make(home, "failed", State.FAILED)
    said = cleaned(capsys, "--keep", "0", "--checkpoints")
    assert [(item["kind"], item["name"]) for item in said["items"]] == [("checkpoints", done.id)]
    assert said["kept"] == {failed.id: "it failed, and `qlora retry` would go on from them"}
    assert not home.run(done.id).checkpoints.exists()
    assert (home.run(done.id).adapters / "file").exists()
    assert home.run(failed.id).checkpoints.exists()
    assert (home.accepted / done.id).exists()
    assert cleaned(capsys, "--keep", "0", "--checkpoints")["items"] == []  # nothing is left of it


def add_model(home: Home, name: str) -> Path:
    folder = home.models / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(os.urandom(9000))
    return folder


def test_models_go_only_when_asked_and_only_those_that_no_job_was_made_with(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """A result without its base model is worth nothing, done or not."""
    for name in ("by-name", "by-path", "of-the-old", "unused"):
        add_model(home, name)
    make(home, "a", model="by-name")
    make(home, "b", model="x", model_path=str(home.models / "by-path"))
    make(home, "old", days=99, model="of-the-old")
    cleaned(capsys, "--keep", "20")
    assert len(list(home.models.iterdir())) == 4
    said = cleaned(capsys, "--models")
    assert [item["name"] for item in said["items"]] == ["unused"]
    said = cleaned(capsys, "--older", "30d", "--models")  # the old job goes, and then its model has no other
    assert [item["name"] for item in said["items"] if item["kind"] == "model"] == ["of-the-old"]
    assert sorted(path.name for path in home.models.iterdir() if path.name[0] != ".") == ["by-name", "by-path"]


@pytest.mark.parametrize("named", ["as given", "resolved", "below", "from the user's home", "a link in models"])
def test_a_model_stays_by_whichever_way_a_job_names_it(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """`~/qlora` is a link to a larger disk, and what a job resolved its model to knows nothing of the link."""
    disk = home.path.with_name("disk")
    home.path.rename(disk)
    home.path.symlink_to(disk)
    monkeypatch.setenv("HOME", str(home.path.parent))
    add_model(home, "used")
    add_model(home, "unused")
    if named == "a link in models":
        (home.models / "used").rename(disk / "elsewhere")
        (home.models / "used").symlink_to(disk / "elsewhere")
    model, model_path = {
        "as given": (str(home.models / "used"), None),
        "resolved": ("../h/models/used", str(disk / "models" / "used")),
        "below": ("x", str(disk / "models" / "used" / "adapted")),
        "from the user's home": ("~/disk/models/used", None),
        "a link in models": ("x", str(disk / "elsewhere")),
    }[named]
    make(home, "a", State.QUEUED, model=model, model_path=model_path)
    assert [item["name"] for item in cleaned(capsys, "--models")["items"]] == ["unused"]
    assert (home.models / "used" / "config.json").exists()


def test_no_model_goes_while_a_run_does_not_say_which_it_was_made_with(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """It might be just that one."""
    add_model(home, "unused")
    home.run(make(home, "a").id).spec.unlink()
    said = cleaned(capsys, "--models")
    assert said["items"] == []
    assert "a job does not say which it was made with" in said["kept"]["every model"]
    assert (home.models / "unused").exists()


def test_tokens_that_are_in_use_stay(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """A training process reads them from there, row by row."""
    from qlora_engine.training.token_entry import Hold

    for name in ("used", "unused"):
        (home.tokens / name).mkdir(parents=True)
        (home.tokens / name / "lock").touch()
        (home.tokens / name / "rows.bin").write_bytes(os.urandom(9000))
    held = Hold(home.tokens / "used")
    said = cleaned(capsys, "--tokens")
    assert [(item["kind"], item["name"]) for item in said["items"]] == [("tokens", "unused")]
    assert sorted(path.name for path in home.tokens.iterdir()) == ["lock", "used"]
    del held


def test_what_was_dropped_for_a_job_whose_run_was_deleted_by_hand_goes_too(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing else would ever remove it."""
    (home.accepted / "20261122-143501-gone").mkdir()
    kept = make(home, "kept")
    said = cleaned(capsys, "--keep", "20")
    assert [(item["kind"], item["name"]) for item in said["items"]] == [("left over", "20261122-143501-gone")]
    assert [path.name for path in home.accepted.iterdir()] == [kept.id]


def accept_sweep(home: Home) -> Path:
    """A sweep of two jobs as the daemon accepts it: first the run folders appear, then what was dropped moves."""
    group = "20261122-143501-sweep"
    for rank in (8, 16):
        record = JobRecord.new(f"{group}-rank-{rank}", "sweep").moved(State.QUEUED).noting(group=group)
        home.run(record.id).path.mkdir()
        record.store(home.run(record.id).state)
    dropped = home.accepted / group
    dropped.mkdir(exist_ok=True)
    (dropped / "train.jsonl").write_text('{"text": "x"}\n')
    return dropped


def test_a_sweep_that_is_accepted_while_the_records_are_read_keeps_its_data(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its jobs are not among those records, and what was dropped is all that there is of its data."""
    accepted: list[Path] = []

    def read(home: Home) -> Listing:
        found = list_records(home)
        accepted.extend([] if accepted else [accept_sweep(home)])
        return found

    monkeypatch.setattr(clean, "list_records", read)
    assert cleaned(capsys, "--keep", "20")["items"] == []
    assert (accepted[0] / "train.jsonl").exists()


def test_what_is_left_over_is_looked_at_again_before_it_goes(home: Home) -> None:
    """Between the two a run folder may be back, and asking the daemon takes its time."""
    wanted = clean.Wanted(jobs=True, keep=20)
    (home.accepted / "20261122-143501-sweep").mkdir()
    (home.accepted / "20261122-143501-gone").mkdir()
    found = clean.look(home, wanted)
    assert found.names("left over") == ["20261122-143501-gone", "20261122-143501-sweep"]
    dropped = accept_sweep(home)
    gone = clean.carry_out(Settings(home=home.path), found, wanted)
    assert gone.names("left over") == ["20261122-143501-gone"]
    assert gone.kept == {dropped.name: "a job needs it by now"}
    assert list(home.accepted.iterdir()) == [dropped]


def test_what_was_dropped_for_a_sweep_goes_with_the_last_of_its_jobs(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its jobs share one folder of data, and one that failed may be tried again."""
    group = "20261122-143501-sweep"
    data = home.accepted / group
    data.mkdir()
    (data / "train.jsonl").write_bytes(os.urandom(9000))
    trains = {"data": {"train": {"path": str(data / "train.jsonl")}}}
    jobs = []
    for rank, state in ((1, State.DONE), (2, State.QUEUED), (3, State.FAILED)):
        record = make(home, f"sweep-rank-{rank}", state, days=rank, **trains).noting(group=group)
        record.store(home.run(record.id).state)
        (home.accepted / record.id / "file").unlink()
        (home.accepted / record.id).rmdir()
        jobs.append(record)
    cleaned(capsys, "--older", "2d")
    assert names(home) == ["sweep-rank-1", "sweep-rank-2"], "a job that goes on needs no sibling"
    assert (data / "train.jsonl").exists()
    jobs[1].noting(state=State.DONE).store(home.run(jobs[1].id).state)
    uses = make(home, "uses", State.QUEUED, **trains)
    assert set(cleaned(capsys, "--keep", "0")["kept"]) == {jobs[0].id, jobs[1].id}, "another job has its data there"
    uses.noting(state=State.DONE, ended=utc_now()).store(home.run(uses.id).state)
    cleaned(capsys, "--keep", "1")
    assert names(home) == ["uses"]
    assert not data.exists()


@pytest.mark.parametrize("arguments", [[], ["--checkpoints"], ["--older", "soon"], ["--keep", "-1"]])
def test_without_saying_what_nothing_goes(home: Home, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """`qlora clean` alone must not be a way to lose everything."""
    make(home, "a", days=99)
    assert main(["clean", *arguments]) == 64
    assert "Usage: qlora clean" in capsys.readouterr().err
    assert names(home) == ["a"]


def test_a_cleaning_that_is_killed_leaves_no_half_job_and_is_finished_by_the_next(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder is at its place whole, or has another name."""
    make(home, "a"), make(home, "b")

    def die(_path: Path) -> None:
        raise KeyboardInterrupt  # stands for SIGKILL, after the renames

    with monkeypatch.context() as patch:
        patch.setattr("qlora_client.clean.delete", die)
        assert main(["clean", "--keep", "0"]) == 130
    assert names(home) == []
    assert len(list(leftovers(home))) == 4  # two runs and what was dropped for them
    assert list(JobTable(home, []).load()) == []
    capsys.readouterr()
    cleaned(capsys, "--keep", "0")
    assert list(leftovers(home)) == []


def test_a_kill_between_the_renames_of_one_job_is_put_right(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is gone, and what was dropped for it is found as left over."""
    job = make(home, "a")
    renames: list[Path] = []
    set_aside = disposal.set_aside

    def die_at_the_second(path: Path, called: Path | None = None) -> None:
        if renames:
            raise KeyboardInterrupt
        renames.append(path)
        set_aside(path, called)

    monkeypatch.setattr(disposal, "set_aside", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        dispose(home, {job.id: job}, (), [job.id], Part.RUN)
    assert disposal.orphans(home, disposal.dropped_in(home), []) == [home.accepted / job.id]


@pytest.fixture
def orders(home: Home) -> tuple[Orders, JobTable, list[Event]]:
    """The daemon's side, without Redis, which cleaning does not need."""
    settings = Settings(home=home.path)
    said: list[Event] = []
    jobs = JobTable(home, [said.append])
    queue = JobQueue(connect(settings, timeout=1.0), keys_of(settings))
    runner = Runner(jobs, queue, gpu_lock=home.path / "gpu.lock", cancel_seconds=1.0, relay=said.append)
    return Orders(home, jobs, runner, EventLog([said.append])), jobs, said


def test_the_daemon_forgets_what_is_cleaned_and_takes_the_same_job_anew(
    home: Home, orders: tuple[Orders, JobTable, list[Event]]
) -> None:
    """Asked twice it does it once; and a job of the same content is no duplicate of one that is gone."""
    gone, stays = make(home, "gone"), make(home, "stays", State.QUEUED)
    carry_out, jobs, said = orders[0].carry_out, orders[1], orders[2]
    assert list(jobs.load()) == []
    for key in ("0" * 32, "1" * 32):
        answer = carry_out(Request(key=key, kind="clean", payload={"jobs": [gone.id, stays.id], "part": "run"}))
        assert json.loads(answer.what or "") == {stays.id: "it is queued"}
    assert list(jobs.by_id) == [stays.id]
    assert jobs.of_request("key-gone") is None
    assert jobs.unfinished_like("digest-gone") is None
    cleanings = [(event["job"], event["part"]) for event in said if event["event"] == "job.cleaned"]
    assert cleanings == [(gone.id, "run")]


def test_a_client_does_not_touch_jobs_that_a_daemon_has(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Two who rename would each spoil what the other believes: it is asked, and here it does not answer."""
    make(home, "a")
    with lock.held(home.daemon_lock, {"pid": 1}):
        assert main(["clean", "--keep", "0"]) == 69
    assert "does not answer" in capsys.readouterr().err
    assert names(home) == ["a"]


def test_the_room_of_a_folder_is_what_it_takes_on_the_disk(tmp_path: Path) -> None:
    """A sparse file or a link to a model elsewhere frees nothing of its size."""
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_bytes(os.urandom(100_000))
    with (folder / "sparse").open("wb") as file:
        file.truncate(10**9)
    (tmp_path / "big").write_bytes(os.urandom(10**6))
    (folder / "link").symlink_to(tmp_path / "big")
    assert 100_000 <= bytes_of(folder) < 200_000
    assert bytes_of(folder / "link") < 10_000
    assert bytes_of(tmp_path / "none") == 0
