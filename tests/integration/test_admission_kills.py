"""A daemon killed at any moment of an admission leaves exactly one job, or exactly one rejection."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from qlora_daemon.admission import Admission
from qlora_daemon.claims import Claim
from qlora_daemon.jobs import JobTable
from qlora_daemon.settling import look
from qlora_engine.job.errors import JobRejected, QloradError
from qlora_engine.job.events import EventLog
from qlora_engine.job.examine import examine_request
from qlora_engine.job.folder import Home
from qlora_engine.job.states import State
from qlora_engine.job.verdict import ExamineRequest
from qlora_worker import letters
from qlora_worker.letters import Letter
from qlora_worker.messages import Answer, Submission
from qlora_worker.requests import Received
from support.service import Daemon

KEY = "f" * 32


class AtOnce:
    """An admission whose examiner answers at once, in this process."""

    def __init__(self, home: Home) -> None:
        self.home, self.jobs = home, JobTable(home, [])
        assert not list(self.jobs.load())
        self.answers: list[Answer] = []
        self.admission = Admission(
            home, self.jobs, examine=self.examine,
            reply=lambda _received, answer: self.answers.append(answer), log=EventLog([]),
        )  # fmt: skip

    def examine(self, claim: Claim) -> None:
        request = ExamineRequest(
            job_file=str(claim.job_file), text=claim.text, home=str(self.home.path), shown_as=claim.name,
            base=str(claim.relative_from) if claim.relative_from else None,
        )  # fmt: skip
        try:
            job = examine_request(request)
        except JobRejected as error:
            self.verdict(claim, error)
        else:
            self.admission.examined(claim.key, job)
            self.admission.settle()

    def verdict(self, claim: Claim, error: QloradError) -> None:
        self.admission.examined(claim.key, error)
        self.admission.settle()

    def take(self, name: str) -> None:
        found = look(self.home.jobs / name)
        if found is not None:
            self.admission.take(found, None)


def kill_at(moment: int, action: Callable[[], None]) -> bool:
    """Run `action` in a fork that is killed before its nth sync, rename or removal; whether it was killed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with _killing(moment):
                action()
            code = 0
        except Exception:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@contextlib.contextmanager
def _killing(moment: int) -> Iterator[None]:
    passed = 0

    def count(real: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            nonlocal passed
            passed += 1
            if passed == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return counted

    with contextlib.ExitStack() as stack:
        for place in ("os.open", "os.mkdir", "os.rmdir", "os.unlink", "pathlib.Path.rename"):
            module, _, name = place.rpartition(".")
            owner = Path if module == "pathlib.Path" else os
            stack.enter_context(mock.patch(place, count(getattr(owner, name))))
        yield


def through_every_kill(home: Home, begin: Callable[[], None], check: Callable[[], None]) -> int:
    """Kill an admission at its first moment, its second and so on; each time a restart must set it right."""
    moment = 0
    while True:
        moment += 1
        for folder in (home.jobs, home.runs):
            shutil.rmtree(folder, ignore_errors=True)
        home.make()
        killed = kill_at(moment, begin)

        def restart() -> None:
            AtOnce(home).admission.resume()

        assert not kill_at(0, restart)
        assert not kill_at(0, begin)  # what still lies in the folder, or is asked again
        check()
        assert not list(home.taking.iterdir()), moment
        assert not list(home.runs.glob(".*")), moment
        if not killed:
            return moment


@pytest.mark.parametrize("kind", ["file", "folder", "request", "letter"])
def test_a_good_job_is_one_job(daemon: Daemon, kind: str) -> None:
    """Lost is a night of training that did not happen; twice is one that happened for nothing."""
    home, text = daemon.home, daemon.text(name="job")
    submission = Submission(text=text, name="a.yaml", base=str(home.path))
    name = f"a.{KEY}.submission" if kind == "letter" else "a.yaml"

    def begin() -> None:
        found = AtOnce(home)
        found.admission.resume()
        if kind == "request":
            received = Received("1-0", KEY, None)
            found.admission.submit(received, submission)
            return
        if not list(home.runs.iterdir()) and not list(home.taking.iterdir()) and not (home.jobs / name).exists():
            drop()
        found.take(name)

    def drop() -> None:
        if kind == "letter":
            letters.leave(home, Letter(key=KEY, submission=submission))
        elif kind == "file":
            daemon.drop("a.yaml", text)
        else:
            daemon.drop_folder("a.yaml", name="job")

    def check() -> None:
        assert daemon.job("job").state is State.QUEUED
        job = daemon.job("job")
        handed_back = [] if kind == "request" else [job.id]  # what was not dropped is not handed back
        assert [path.name for path in home.accepted.iterdir()] == handed_back
        data = json.loads(home.run(job.id).spec.read_text())["data"]["train"]["path"]
        assert Path(data).exists()

    assert through_every_kill(home, begin, check) > (5 if kind == "request" else 20)


@pytest.mark.parametrize("kind", ["folder", "request"])
def test_a_sweep_is_all_of_its_jobs_once(daemon: Daemon, kind: str) -> None:
    """A half of it would be ranked as if it were the whole; a second half beside it would train everything twice."""
    home, sweep = daemon.home, {"grid": {"lora_parameters": {"rank": [4, 8]}}}
    submission = Submission(text=daemon.text(name="job", sweep=sweep), name="a.yaml", base=str(home.path))

    def begin() -> None:
        found = AtOnce(home)
        found.admission.resume()
        if kind == "request":
            found.admission.submit(Received("1-0", KEY, None), submission)
            return
        if not list(home.runs.iterdir()) and not list(home.taking.iterdir()) and not (home.jobs / "a.yaml").exists():
            daemon.drop_folder("a.yaml", name="job", sweep=sweep)
        found.take("a.yaml")

    def check() -> None:
        jobs = sorted(daemon.jobs(), key=lambda job: job.created)
        assert [(job.name, job.state) for job in jobs] == [(f"job rank={rank}", State.QUEUED) for rank in (4, 8)]
        (group,) = {job.group for job in jobs}
        assert [path.name for path in home.accepted.iterdir()] == ([] if kind == "request" else [group])
        for job in jobs:
            spec = json.loads(home.run(job.id).spec.read_text())
            assert Path(spec["data"]["train"]["path"]).exists()
            assert spec["spec"]["lora_parameters"]["rank"] == job.settings["lora_parameters.rank"]
        again = AtOnce(home)  # whoever asks once more is told of the same
        again.admission.submit(Received("2-0", str(jobs[0].request).partition("/")[0], None), submission)
        assert [answer.job for answer in again.answers] == [group]

    assert through_every_kill(home, begin, check) > (15 if kind == "request" else 25)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_bad_job_is_one_rejection(daemon: Daemon, kind: str) -> None:
    """The file must be somewhere, and its reason beside it."""
    home = daemon.home

    def begin() -> None:
        found = AtOnce(home)
        found.admission.resume()
        if (
            not list(home.rejected.iterdir())
            and not list(home.taking.iterdir())
            and not (home.jobs / "a.yaml").exists()
        ):
            if kind == "file":
                daemon.drop("a.yaml", "iterz: 3")
            else:
                daemon.drop_folder("a.yaml", iterz=3)
        found.take("a.yaml")

    def check() -> None:
        assert sorted(path.name for path in home.rejected.iterdir()) == ["a.yaml", "a.yaml.txt"]
        assert "iterz" in (home.rejected / "a.yaml.txt").read_text()
        assert not daemon.jobs()

    assert through_every_kill(home, begin, check) > 15
