"""What people ask of the queue: who goes first, who waits for whom, and what stops for what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_client.cli import main
from qlora_engine.job.errors import NoSuchJob, WrongState
from qlora_engine.job.pause import Pause
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from qlora_worker.messages import Kind
from support.service import Daemon, wait_until


def running(daemon: Daemon, name: str, **keys: object) -> JobRecord:
    """A long job that runs and has a checkpoint."""
    daemon.drop(f"{name}.yaml", daemon.text(**{"iters": 1000, **keys}))
    job = daemon.wait_for_state(name, State.RUNNING)
    daemon.wait_for("checkpoint.saved", job=job.id)
    return job


def ask(daemon: Daemon, kind: Kind, job: JobRecord | None = None, **more: object) -> str | None:
    """Ask, and raise what the daemon refuses."""
    answer = daemon.requests().ask(kind, ({"job": job.id} if job else {}) | more)
    answer.raise_if_refused()
    return answer.what


def started(daemon: Daemon) -> list[str]:
    """The names of the jobs in the order in which they were started."""
    return [event["job"].split("-", 2)[2] for event in daemon.events("training.started")]


def end(daemon: Daemon, *jobs: JobRecord) -> None:
    """Cancel jobs, so that the next test finds an idle daemon."""
    for job in jobs:
        ask(daemon, "cancel", job)
        daemon.wait_for_state(job.name, State.CANCELLED)


def test_an_urgent_job_goes_first_and_the_other_goes_on_after_it(shared: Daemon) -> None:
    """At a checkpoint, without a crash counted against it, and before those that came later."""
    long = running(shared, "long")
    shared.drop("later.yaml", shared.text(iters=1))
    shared.wait_for_state("later", State.QUEUED)
    shared.drop("urgent.yaml", shared.text(iters=1, urgent=True))
    urgent = shared.wait_for_state("urgent", State.DONE)
    wait_until("the other goes on", lambda: started(shared).count("long") == 2)
    assert started(shared) == ["long", "urgent", "long"]
    shared.wait_for("training.resumed", job=long.id)
    moves = [(event["to"], event["reason"]) for event in shared.events("job.state", job=long.id)]
    assert (State.STOPPING, f"makes way for {urgent.id}; it goes on from its checkpoint") in moves
    saved = [event["step"] for event in shared.events("checkpoint.saved", job=long.id)]
    resumed = shared.events("training.resumed", job=long.id)
    assert [event["step"] for event in resumed] == [max(saved[: saved.index(resumed[0]["step"]) + 1])]
    assert shared.wait_for_state("long", State.RUNNING).crashes == 0
    end(shared, long)
    shared.wait_for_state("later", State.DONE)


def test_a_job_is_submitted_with_other_values_held_released_and_waited_for(
    shared: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that `qlora submit` may say of a job beside its file, and how a script learns what became of it."""
    monkeypatch.setenv("QLORAD_HOME", str(shared.home.path))
    (tmp_path / "wide.yaml").write_text(shared.text(iters=1000))
    assert main(["submit", str(tmp_path / "wide.yaml"), "--hold", "--set", "iters=3", "--priority", "7"]) == 0
    held = shared.job("wide")
    assert capsys.readouterr().out == f"{held.id}\n"
    assert (held.state, held.priority, held.attempt) == (State.HELD, 7, 0)
    assert main(["release", held.id]) == 0
    assert shared.wait_for_state("wide", State.DONE).steps == 3

    capsys.readouterr()
    asked = ["submit", str(tmp_path / "wide.yaml"), "--after", "wide", "--set", "name=next", "--set", "iters=1"]
    assert main([*asked, "--wait", "--json"]) == 0
    answer = capsys.readouterr()
    assert json.loads(answer.out)["state"] == "done"
    assert shared.job("next").after == (held.id,)
    assert "done" in answer.err
    assert main(["submit", str(tmp_path / "wide.yaml"), "--set", "iterz=1"]) == 65
    assert "--set iterz=1" in capsys.readouterr().err


def test_whatever_a_person_asks_of_the_queue_a_program_may_ask_as_json(
    shared: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard output is one JSON value, whatever is said beside it."""
    monkeypatch.setenv("QLORAD_HOME", str(shared.home.path))
    (tmp_path / "program.yaml").write_text(shared.text(iters=1000, name="program"))

    def ask_json(*words: str) -> dict[str, object]:
        capsys.readouterr()
        assert main([*words, "--json"]) == 0
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    assert ask_json("pause", "--for", "1h")["paused"] is True
    job = str(ask_json("submit", str(tmp_path / "program.yaml"))["job"])
    for words, state in (
        (("hold", job), "held"),
        (("release", job), "queued"),
        (("prioritise", job, "5"), "queued"),
        (("cancel", job), "cancelled"),
        (("retry", job), "queued"),
        (("cancel", job), "cancelled"),
    ):
        assert ask_json(*words)["state"] == state
    assert ask_json("resume") == {"paused": False, "until": None}


def test_a_job_waits_for_those_that_it_comes_after(shared: Daemon) -> None:
    """And for a person where one of them does not end well."""
    first = running(shared, "first")
    shared.drop("second.yaml", shared.text(iters=1, after="first"))
    second = shared.wait_for_state("second", State.BLOCKED)
    assert second.after == (first.id,)
    assert second.reason == f"waits for {first.id}"
    shared.drop("third.yaml", shared.text(iters=1, after=[second.id, "first"]))
    shared.wait_for_state("third", State.BLOCKED)
    ask(shared, "cancel", first)
    held = shared.wait_for_state("second", State.HELD)
    assert held.reason == f"{first.id}, which it waits for, was cancelled · `qlora release` lets it go on"
    third = shared.wait_for_state("third", State.HELD)
    ask(shared, "release", third)  # it waits for the second still
    assert shared.job("third").state is State.BLOCKED
    assert shared.job("third").after == (second.id,)
    ask(shared, "release", held)
    shared.wait_for_state("third", State.DONE)
    order = started(shared)
    assert order.index("second") < order.index("third")


def test_a_job_that_names_no_job_is_refused(shared: Daemon) -> None:
    """Nothing can come after what is not there; and so no two jobs wait for each other."""
    shared.drop("lost.yaml", shared.text(after="ring"))
    shared.drop("ring.yaml", shared.text(after="lost"))
    wait_until("both are rejected", lambda: len(shared.events("file.rejected")) == 2)
    assert all("no such job" in event["what"] for event in shared.events("file.rejected"))


def test_a_job_is_held_and_released_wherever_it_is(shared: Daemon) -> None:
    """Queued at once, running at a checkpoint, from which it goes on."""
    job = running(shared, "held")
    shared.drop("queued.yaml", shared.text(iters=1))
    queued = shared.wait_for_state("queued", State.QUEUED)
    ask(shared, "hold", queued)
    assert shared.job("queued").state is State.HELD
    ask(shared, "hold", job)
    held = shared.wait_for_state("held", State.HELD)
    assert (held.reason, held.checkpoint_step > 0, held.attempt) == ("held on request", True, 1)
    assert shared.job("queued").state is State.HELD
    ask(shared, "release", held)
    shared.wait_for_state("held", State.RUNNING)
    resumed = shared.wait_for("training.resumed", job=job.id)
    assert resumed["step"] == held.checkpoint_step
    end(shared, job, queued)


def test_a_job_that_ended_is_tried_again_on_request_alone(shared: Daemon) -> None:
    """It is the same job and goes on from its checkpoint; what is done stays done."""
    job = running(shared, "tried")
    end(shared, job)
    with pytest.raises(WrongState, match="cancelled, so there is nothing to release"):
        ask(shared, "release", job)
    ask(shared, "retry", job)
    again = shared.wait_for_state("tried", State.RUNNING)
    assert (again.id, again.attempt, again.ended, again.cancel_requested) == (job.id, 2, None, False)
    assert shared.events("training.resumed", job=job.id)
    end(shared, job)
    shared.drop("good.yaml", shared.text(iters=1))
    good = shared.wait_for_state("good", State.DONE)
    with pytest.raises(WrongState, match="is done"):
        ask(shared, "retry", good)
    with pytest.raises(NoSuchJob):
        shared.requests().ask("retry", {"job": "20200101-000000-nothing"}).raise_if_refused()


def test_a_job_trains_no_longer_than_it_may(shared: Daemon) -> None:
    """It is held at a checkpoint, not failed: nothing that it learned is lost."""
    shared.drop("limited.yaml", shared.text(iters=1000, max_runtime="2s"))
    held = shared.wait_for_state("limited", State.HELD)
    assert held.ran >= 2.0
    assert held.checkpoint_step > 0
    assert "max_runtime" in held.reason
    ask(shared, "release", held)
    shared.wait_for_state("limited", State.RUNNING)
    assert shared.wait_for_state("limited", State.HELD).attempt == 2
    end(shared, held)


def test_a_paused_queue_frees_the_gpu_and_comes_back(shared: Daemon) -> None:
    """By itself if it is paused for a time, and it stays paused if the daemon is started again."""
    job = running(shared, "paused")
    assert "until `qlora resume`" in (ask(shared, "pause") or "")
    back = shared.wait_for_state("paused", State.QUEUED)
    assert "paused" in back.reason
    assert shared.stop() == 0
    shared.start()
    assert Pause.load(shared.home.pause).paused
    shared.drop("patient.yaml", shared.text(iters=1, urgent=True))
    shared.wait_for_state("patient", State.QUEUED)
    assert len(shared.events("training.started", job=job.id)) == 1
    assert "until" in (ask(shared, "pause", seconds=1.0) or "")
    shared.wait_for_state("patient", State.DONE)
    shared.wait_for_state("paused", State.RUNNING)
    assert shared.wait_for("queue.resumed")
    assert ask(shared, "resume") == "the queue is not paused"
    end(shared, job)


def test_a_request_that_comes_again_is_only_answered_again(shared: Daemon) -> None:
    """A daemon that ended before it could answer finds it on the stream, and the job may have gone on since."""
    job = running(shared, "asked")
    requests = shared.requests()
    keys = [f"{number:032x}" for number in range(3)]
    assert requests.ask("hold", {"job": job.id}, key=keys[0]).ok
    shared.wait_for_state("asked", State.HELD)
    assert requests.ask("release", {"job": job.id}, key=keys[1]).ok
    shared.wait_for_state("asked", State.RUNNING)
    assert requests.ask("hold", {"job": job.id}, key=keys[0]).what == "it is running"
    assert requests.ask("prioritise", {"job": job.id, "priority": 7, "urgent": True}, key=keys[2]).ok
    assert requests.ask("prioritise", {"job": job.id, "priority": 1}).ok
    assert requests.ask("prioritise", {"job": job.id, "priority": 7, "urgent": True}, key=keys[2]).ok
    stored = json.loads(shared.home.run(job.id).state.read_text())
    assert (stored["priority"], stored["urgent"], stored["state"]) == (1, True, "running")
    assert not requests.ask("prioritise", {"job": job.id, "priority": 101}).ok
    end(shared, job)
