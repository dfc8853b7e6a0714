"""A submission that comes twice runs once, and what looks the same is said to be."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from qlora_engine.job.states import State
from qlora_worker import letters
from qlora_worker.letters import Letter
from qlora_worker.messages import Submission
from support.service import ROOT, Daemon, wait_until

KEY = "c" * 32


def qlora(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The client, as a person runs it."""
    command = [sys.executable, "-P", "-m", "qlora_client.cli", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=daemon.environment, capture_output=True, text=True, timeout=60, check=False
    )


def job_file(daemon: Daemon, name: str, **keys: object) -> Path:
    """A job file of a person's own, outside the home's folders."""
    path = daemon.home.path / name
    path.write_text(daemon.text(**keys))
    return path


def test_without_a_daemon_a_submission_waits_in_the_watched_folder(daemon: Daemon) -> None:
    """Whoever submits at night, with the daemon down, finds the job trained in the morning."""
    daemon.data()
    path = job_file(daemon, "night.yaml", iters=1, data="d")  # relative to where the file lies
    result = qlora(daemon, "submit", str(path))
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert "does not run" in result.stderr
    assert "qlorad" in result.stderr
    (letter,) = daemon.home.jobs.glob("*.submission")
    assert str(letter) in result.stderr
    daemon.start()
    job = daemon.wait_for_state("night", State.DONE)
    assert job.request is not None
    assert job.request in letter.name
    assert not letter.exists()


def test_a_request_on_the_stream_and_the_same_in_the_folder_are_one_job(daemon: Daemon) -> None:
    """A submission that was not answered in time falls back, and then the daemon finds both."""
    submission = Submission(text=daemon.text(iters=1), name="both.yaml", base=str(daemon.home.path))
    daemon.start()
    requests = daemon.requests()
    daemon.process.send_signal(19)  # SIGSTOP: it will not answer in time, but it will read
    message = {"key": KEY, "kind": "submit", "payload": submission.model_dump()}
    requests._connection.xadd(requests._keys.requests, {"request": json.dumps(message)})
    left = letters.leave(daemon.home, Letter(key=KEY, submission=submission))
    daemon.process.send_signal(18)
    daemon.wait_for_state("both", State.DONE)
    wait_until("the file is taken, too", lambda: not left.exists())
    letters.leave(daemon.home, Letter(key=KEY, submission=submission))  # and once more, when it is done
    wait_until("it is taken again", lambda: not left.exists())
    assert daemon.job("both").attempt == 1
    assert not list(daemon.home.taking.iterdir())
    assert not list(daemon.home.rejected.iterdir())


def test_a_bad_submission_that_was_left_is_rejected_with_its_reason(daemon: Daemon) -> None:
    """Nobody waits for an answer any more: the reason must lie where the person will look."""
    path = job_file(daemon, "my job.yaml", iters=1, batch_size=0)
    assert qlora(daemon, "submit", str(path)).returncode == 0
    (daemon.home.jobs / "forged.submission").write_text('{"key": "../../x"}')
    daemon.start()
    for name, words in (("my job.yaml", ["batch_size", shlex.quote(str(path))]), ("forged.submission", ["key"])):
        daemon.wait_for("file.rejected", path=str(daemon.home.jobs / name))
        text = (daemon.home.rejected / f"{name}.txt").read_text()
        assert all(word in text for word in words), text
        assert ".taking" not in text
    assert not daemon.jobs()


def test_the_same_content_within_the_run_of_the_first_is_a_duplicate(daemon: Daemon) -> None:
    """A finger that slipped must not train everything twice; a person who wants it twice gets it."""
    daemon.start()
    daemon.drop("first.yaml", daemon.text(iters=1000))
    first = daemon.wait_for_state("first", State.RUNNING)
    daemon.drop("my second.yaml", daemon.text(iters=1000))
    daemon.wait_for("file.rejected", path=str(daemon.home.jobs / "my second.yaml"))
    moved = daemon.home.rejected / "my second.yaml"
    text = moved.with_name("my second.yaml.txt").read_text()
    assert first.id in text
    assert f"qlora submit --again {shlex.quote(str(moved))}" in text
    refused = qlora(daemon, "submit", str(moved))
    assert refused.returncode == os.EX_DATAERR
    assert first.id in refused.stderr
    assert "--again" in refused.stderr
    again = qlora(daemon, "submit", "--again", str(moved))
    assert again.returncode == 0, again.stderr
    second = daemon.wait_for_state("my second", State.QUEUED)
    assert second.content == first.content
    for job in (first, second):
        assert daemon.requests().ask("cancel", {"job": job.id}).ok
    daemon.wait_for_state("first", State.CANCELLED)
    assert qlora(daemon, "submit", str(moved)).returncode == 0, "the run of the first is over"
    third = next(job for job in daemon.jobs() if job.id not in (first.id, second.id))
    daemon.requests().ask("cancel", {"job": third.id})


def test_a_job_folder_is_the_same_only_with_the_same_data(daemon: Daemon) -> None:
    """The job file of every folder may be one and the same; what is learned lies beside it."""
    daemon.start()
    daemon.drop("busy.yaml", daemon.text(iters=1000))
    busy = daemon.wait_for_state("busy", State.RUNNING)
    daemon.drop_folder("one", iters=1)
    daemon.wait_for_state("one", State.QUEUED)
    other = daemon.drop_folder(".two", iters=1)
    with (other / "data" / "train.jsonl").open("a") as file:
        file.write('{"prompt": "2 + 2", "completion": "4"}\n')
    other.rename(daemon.home.jobs / "two")
    daemon.wait_for_state("two", State.QUEUED)
    daemon.drop_folder("three", iters=1)
    event = daemon.wait_for("file.rejected", path=str(daemon.home.jobs / "three"))
    assert daemon.job("one").id in event["what"]
    assert f"--again {daemon.home.rejected / 'three'}" in event["remedy"]
    daemon.requests().ask("cancel", {"job": busy.id})
    daemon.wait_for_state("two", State.DONE)


def test_an_error_about_an_option_names_the_option(daemon: Daemon) -> None:
    """Nobody has typed the key of a job file, or seen the file that a command makes."""
    daemon.start()
    (daemon.home.models / "taken").mkdir(parents=True)
    path = job_file(daemon, "job.yaml", iters=1000)
    assert qlora(daemon, "submit", str(path)).returncode == 0
    first = daemon.wait_for_state(daemon.home.path.name, State.RUNNING)
    for words, said in (
        (["submit", str(path), "--after", "no pe"], ["`--after` names 'no pe'", "where:  --after 'no pe'\n"]),
        (["submit", str(path), "--set", "after=nope"], ["`after` names 'nope'", "where:  --set after=nope\n"]),
        (["submit", str(path), "--stop-worse-than", "2"], ["`--stop-worse-than` is for a sweep", "worse-than 2.0\n"]),
        (["fuse", first.id, "--after", "nope"], ["`--after` names 'nope'", "where:  --after nope\n"]),
        (["fuse", first.id, "--name", "taken"], ["A model named taken exists", "where:  --name taken\n"]),
        (["fuse", first.id, "--name", "a b"], ["`--name` is 'a b'", "where:  --name 'a b'\n", "value of `--name`"]),
    ):
        refused = qlora(daemon, *words)
        assert refused.returncode == os.EX_DATAERR
        assert all(one in refused.stderr for one in said), refused.stderr
    assert qlora(daemon, "fuse", first.id).returncode == 0
    refused = qlora(daemon, "fuse", first.id)
    assert "makes just this already" in refused.stderr
    assert "where:" not in refused.stderr
    for job in daemon.jobs():
        daemon.requests().ask("cancel", {"job": job.id})
