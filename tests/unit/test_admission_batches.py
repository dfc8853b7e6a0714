"""Submissions that come together are examined and admitted together, and none of them can spoil the others."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from qlora_daemon.admission import AGAIN_SECONDS, Admission
from qlora_daemon.claims import Claim, claim_request
from qlora_daemon.examiner import Examiner
from qlora_daemon.jobs import JobTable
from qlora_daemon.mail import Examined, Message
from qlora_daemon.settling import look
from qlora_engine.job.errors import Exit, JobRejected, ModelRejected, QloradError
from qlora_engine.job.events import Event, EventLog
from qlora_engine.job.examine import examine_request
from qlora_engine.job.folder import Home
from qlora_engine.job.record import JobRecord, utc_now
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.states import State
from qlora_engine.job.together import FEW, sync_folders
from qlora_engine.job.turn import first_ready
from qlora_engine.job.verdict import ExamineRequest
from qlora_worker.messages import Answer, Submission
from qlora_worker.requests import Received
from support.service import ROOT, Daemon


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(tmp_path / "home")
    found.make()
    return found


# Examining


@pytest.fixture
def mail(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[SimpleQueue[Message], Examiner]]:
    """An examiner that some files end, and where its verdicts come."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(ROOT / part) for part in (".", "tests")))
    box: SimpleQueue[Message] = SimpleQueue()
    examiner = Examiner(home.path, box.put, module="support.touchy_examiner", limit_seconds=3.0)
    yield box, examiner
    examiner.stop()
    examiner.join(10)


def test_what_waits_together_shares_a_process_and_what_ends_it_ends_alone(
    home: Home, mail: tuple[SimpleQueue[Message], Examiner]
) -> None:
    """A file that ends the examiner must not take those along that only waited beside it, or came after."""
    box, examiner = mail
    texts = ["a", "b", "crash", "c", "second", "hang", "d"]
    for number, text in enumerate(texts):
        examiner.hand_over(claim_request(home, f"{number:032x}", Submission(text=text, name="j.yaml", base="/")))
    examiner.start()
    said: dict[str, str] = {}
    for _ in texts:
        message = box.get(timeout=30)
        assert isinstance(message, Examined)
        assert isinstance(message.verdict, JobRejected)
        said[texts[int(message.key, 16)]] = message.verdict.what
    assert said["a"].split()[1] == said["b"].split()[1] != said["c"].split()[1]
    assert "code 3" in said["crash"]
    assert said["second"].startswith("second "), "it lacked only what those before it had taken"
    assert "longer than 3 seconds" in said["hang"]
    assert said["d"].startswith("d ")


def test_a_claim_that_comes_a_moment_later_finds_the_process_still_there(
    home: Home, mail: tuple[SimpleQueue[Message], Examiner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that are submitted one after another need not wait for a start each; and a stop does not wait for more."""
    monkeypatch.setattr("qlora_daemon.examiner.LINGER_SECONDS", 60.0)
    box, examiner = mail
    examiner.start()
    said = []
    for text in ("a", "b"):
        examiner.hand_over(claim_request(home, f"{text:0>32}", Submission(text=text, name="j.yaml", base="/")))
        message = box.get(timeout=30)
        assert isinstance(message, Examined)
        assert isinstance(message.verdict, JobRejected)
        said.append(message.verdict.what.split()[1])
    assert said[0] == said[1]
    examiner.stop()
    examiner.join(10)
    assert not examiner.is_alive()


def test_a_missing_model_is_an_error_of_its_own_kind_to_whoever_submitted_it(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`qlora submit` and `qlora validate` of one file end with the same code."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    box: SimpleQueue[Message] = SimpleQueue()
    examiner = Examiner(home.path, box.put, module="qlora_engine.job.examine")
    examiner.hand_over(claim_request(home, "0" * 32, Submission(text="model: no/where/", name="j.yaml", base="/")))
    examiner.start()
    message = box.get(timeout=30)
    examiner.stop()
    examiner.join(10)
    assert isinstance(message, Examined)
    assert isinstance(message.verdict, QloradError)
    with pytest.raises(ModelRejected) as answer:
        Answer.refused(message.verdict).raise_if_refused()
    assert answer.value.exit_code is Exit.NOINPUT


# Admitting


class Desk:
    """An admission whose verdicts are given by hand, in any company."""

    def __init__(self, home: Home) -> None:
        self.home, self.jobs = home, JobTable(home, [])
        self.claims: list[Claim] = []
        self.answers: list[Answer] = []
        self.events: list[Event] = []
        self.admission = Admission(
            home, self.jobs, examine=self.claims.append,
            reply=lambda _received, answer: self.answers.append(answer), log=EventLog([self.events.append]),
        )  # fmt: skip

    def drop(self, name: str, text: str) -> None:
        path = self.home.jobs / name
        path.write_text(text)
        found = look(path)
        assert found is not None
        self.admission.take(found, None)

    def submit(self, text: str, key: str, *overrides: str) -> None:
        submission = Submission(text=text, name="s.yaml", base="/", overrides=overrides)
        self.admission.submit(Received("1-0", key, None), submission)

    def jobs_by_group(self) -> list[list[JobRecord]]:
        """The jobs by the submission that they came from, the oldest first."""
        found: dict[str, list[JobRecord]] = {}
        for job in sorted(self.jobs, key=lambda job: job.created):
            found.setdefault(job.submitted_as, []).append(job)
        return list(found.values())

    def give_verdicts(self) -> None:
        """On everything at once."""
        for claim in self.claims:
            request = ExamineRequest(
                job_file=str(claim.job_file), text=claim.text, home=str(self.home.path), shown_as=claim.name,
                overrides=claim.overrides,
            )  # fmt: skip
            try:
                self.admission.examined(claim.key, examine_request(request))
            except QloradError as error:
                self.admission.examined(claim.key, error)
        self.claims.clear()


def test_a_batch_becomes_jobs_and_rejections_each_answered(home: Home) -> None:
    """However many come at once, each has one folder, one state and one answer."""
    desk, text = Desk(home), Daemon(home.path).text
    for number in range(2 * FEW):
        desk.submit(text(name="same", seed=number), f"{number:032x}")
    desk.drop("bad.yaml", "iterz: 1")
    desk.submit(text(name="same", seed=0), "f" * 32)  # as the first one: within its batch, too
    desk.give_verdicts()
    desk.admission.settle()
    jobs = list(desk.jobs)
    assert len(desk.answers) == 2 * FEW + 1
    assert len({job.id for job in jobs}) == len(jobs) == 2 * FEW
    for job in jobs:
        assert job.state is State.QUEUED
        files = sorted(path.name for path in home.run(job.id).path.iterdir())
        assert files == ["events.jsonl", "job.yaml", "spec.json", "state.json"]
    (refused,) = [answer for answer in desk.answers if not answer.ok]
    assert refused.error == "DuplicateJob"
    assert sorted(path.name for path in home.rejected.iterdir()) == ["bad.yaml", "bad.yaml.txt"]
    again = JobTable(home, [])
    assert not list(again.load())
    assert {job.id for job in again} == {job.id for job in jobs}


def test_what_is_set_in_place_of_a_value_makes_another_job(home: Home) -> None:
    """Ten submissions of one file with ten learning rates are ten jobs; the same one twice is not."""
    desk, text = Desk(home), Daemon(home.path).text(name="same")
    for number, overrides in enumerate([(), ("seed=1",), ("seed=2",), ("seed=1",)]):
        desk.submit(text, f"{number:032x}", *overrides)
    desk.give_verdicts()
    desk.admission.settle()
    seeds = [ResolvedJob.model_validate_json(home.run(job.id).spec.read_bytes()).spec.seed for job in desk.jobs]
    assert sorted(seeds) == [0, 1, 2]
    assert [answer.error for answer in desk.answers if not answer.ok] == ["DuplicateJob"]


def test_a_sweep_beside_other_jobs_is_one_answer_and_the_same_one_twice_is_refused(home: Home) -> None:
    """Its jobs are ordinary ones, and who submits it twice by mistake trains it once."""
    desk, text = Desk(home), Daemon(home.path).text
    sweep = text(name="poems", sweep={"grid": {"seed": [1, 2, 3]}})
    desk.submit(sweep, "0" * 32)
    desk.submit(text(name="poems seed=1"), "1" * 32)  # its id would be that of the first job of the sweep
    desk.submit(sweep, "2" * 32)
    desk.submit(sweep, "3" * 32, "sweep.samples=2")
    desk.give_verdicts()
    desk.admission.settle()
    group, other, again = desk.jobs_by_group()
    assert [job.settings for job in group] == [{"seed": seed} for seed in (1, 2, 3)]
    assert [job.name for job in group] == ["poems seed=1", "poems seed=2", "poems seed=3"]
    assert [job.name for job in other] == ["poems seed=1"]
    assert len(again) == 2
    assert {answer.job for answer in desk.answers if answer.ok} == {group[0].group, other[0].id, again[0].group}
    (refused,) = [answer for answer in desk.answers if not answer.ok]
    assert f"the same sweep as {group[0].group}" in str(refused.what)
    assert [job.state for job in desk.jobs] == [State.QUEUED] * 6
    assert first_ready(desk.jobs, utc_now()) == group[0], "they run in the order in which they are made"


def test_a_sweep_whose_folders_the_disk_refuses_half_way_is_whole_in_the_end(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was accepted: what has not appeared yet must, and what has may not appear twice."""
    desk, rename, moved = Desk(home), Path.rename, []

    def refuse_the_third(path: Path, target: Path) -> Path:
        moved.append(path)
        if len(moved) == 3:  # the whole, the first job, and then
            raise OSError(28, "No space left on device")
        return rename(path, target)

    desk.submit(Daemon(home.path).text(name="poems", sweep={"grid": {"seed": [1, 2, 3]}}), "0" * 32)
    desk.give_verdicts()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse_the_third)
        desk.admission.settle()
    assert len(moved) == 3 + 2, "it went on where it was"
    assert sorted(job.settings["seed"] for job in desk.jobs) == [1, 2, 3]
    assert len([path for path in home.runs.iterdir() if not path.name.startswith(".")]) == 3
    assert not list(home.runs.glob(".*"))
    assert [answer.ok for answer in desk.answers] == [True]


def test_a_job_that_is_to_be_held_is_held_before_anybody_sees_it(home: Home) -> None:
    """Queued for a moment, it could start in it."""
    desk = Desk(home)
    desk.submit(Daemon(home.path).text(name="one"), "0" * 32, "hold=true")
    desk.give_verdicts()
    desk.admission.settle()
    (job,) = desk.jobs
    assert (job.state, job.reason) == (State.HELD, "held from the start · `qlora release` lets it go on")
    assert JobRecord.load(home.run(job.id).state) == job
    said = [json.loads(line) for line in home.run(job.id).events.read_text().splitlines()]
    assert [event["to"] for event in said if event["event"] == "job.state"] == [State.HELD]


def test_what_the_disk_refuses_all_night_is_said_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each five seconds it would fill the log, and the disk with it."""
    monkeypatch.setattr("qlora_daemon.admission.AGAIN_SECONDS", 0.0)
    desk = Desk(home)
    desk.drop("one.yaml", Daemon(home.path).text(name="one"))
    path = desk.claims[0].job_file
    desk.give_verdicts()
    path.rename(home.path / "hidden")
    for _ in range(3):
        desk.admission.settle()
    assert [event["event"] for event in desk.events].count("internal.error") == 1
    path.mkdir()  # another reason
    desk.admission.settle()
    assert [event["event"] for event in desk.events].count("internal.error") == 2


def test_what_the_disk_refuses_is_tried_again_and_holds_up_nobody(home: Home) -> None:
    """A disk that is full for a minute must not cost the jobs that were dropped in it."""
    desk, text = Desk(home), Daemon(home.path).text
    for name in ("one", "two", "three"):
        desk.drop(f"{name}.yaml", text(name=name))
    hidden = desk.claims[1].job_file
    desk.give_verdicts()
    hidden.rename(home.path / "hidden")  # it cannot be read now
    desk.admission.settle()
    assert sorted(job.name for job in desk.jobs) == ["one", "three"]
    assert [event["event"] for event in desk.events].count("internal.error") == 1
    assert not list(home.runs.glob(".*"))
    assert 0 < desk.admission.seconds_until_due <= AGAIN_SECONDS
    (home.path / "hidden").rename(hidden)
    end = time.monotonic() + 2 * AGAIN_SECONDS
    while desk.admission.seconds_until_due > 0 and time.monotonic() < end:
        time.sleep(0.1)
    desk.admission.settle()
    assert sorted(job.name for job in desk.jobs) == ["one", "three", "two"]
    assert not list(home.taking.iterdir())


def test_folders_are_forced_to_the_disk_few_or_many(tmp_path: Path) -> None:
    """An empty batch, one job and hundreds go the same way."""
    sync_folders([])
    folders = [tmp_path / str(number) for number in range(3 * FEW)]
    for folder in folders:
        folder.mkdir()
        (folder / "file").write_text("x")
    sync_folders(folders[:1])
    sync_folders(folders)
    with pytest.raises(FileNotFoundError):
        sync_folders([tmp_path / "none"])
