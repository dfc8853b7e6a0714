"""Jobs run one at a time, and each ends in exactly one state."""

from __future__ import annotations

import time

import psutil
import pytest

from qlora_engine.job import lock
from qlora_engine.job.errors import DaemonUnavailable, JobRejected, NoSuchJob
from qlora_engine.job.folder import JOB_ID
from qlora_engine.job.states import ACTIVE, State
from support.service import Daemon, wait_until


def test_priority_goes_before_age_and_one_runs_at_a_time(shared: Daemon) -> None:
    """Two trainings at once would not fit into one GPU's memory."""
    shared.drop("first.yaml", shared.text(iters=1000))
    first = shared.wait_for_state("first", State.RUNNING)
    shared.drop("second.yaml", shared.text(iters=1))
    shared.wait_for_state("second", State.QUEUED)
    shared.drop("urgent.yaml", shared.text(iters=1, priority=5))
    shared.wait_for_state("urgent", State.QUEUED)
    assert shared.requests().ask("cancel", {"job": first.id}).ok
    shared.wait_for_state("second", State.DONE)
    started = [event["job"].split("-", 2)[2] for event in shared.events("training.started")]
    assert started == ["first", "urgent", "second"]
    moves = shared.events("job.state")
    active = 0
    for move in moves:
        active += (move["to"] in ACTIVE) - (move["from"] in ACTIVE)
        assert active in (0, 1)


def test_a_failure_is_final_and_says_why(shared: Daemon) -> None:
    """Training an impossible job again and again keeps the others waiting."""
    shared.drop("broken.yaml", shared.text(seed=2))
    job = shared.wait_for_state("broken", State.FAILED)
    assert "It broke." in job.reason
    assert "Mend it." in job.reason
    assert (job.attempt, job.crashes) == (1, 0)


def test_a_crash_is_tried_again_and_three_fail_the_job(shared: Daemon) -> None:
    """A crash may be bad luck; three in the same place are not, and must not block the queue for ever."""
    shared.drop("unlucky.yaml", shared.text(seed=5))
    job = shared.wait_for_state("unlucky", State.DONE)
    assert job.attempt == 2
    assert shared.home.run(job.id).output.exists()
    assert shared.home.run(job.id).exit(1).exists()
    shared.drop("doomed.yaml", shared.text(seed=1))
    job = shared.wait_for_state("doomed", State.FAILED)
    assert (job.attempt, job.crashes) == (3, 3)
    assert "SIGKILL" in job.reason
    assert "output.log" in job.reason


def test_a_busy_gpu_is_waited_for(shared: Daemon) -> None:
    """`qlora try` or a foreground run has the GPU: the job waits, and the log says for whom."""
    with lock.held(shared.settings().gpu_lock_path, {"pid": 1, "job": "somebody"}):
        shared.drop("patient.yaml", shared.text(iters=1))
        assert shared.wait_for("gpu.busy")["holder"]["job"] == "somebody"
        assert shared.job("patient").state is State.QUEUED
    shared.wait_for_state("patient", State.DONE)
    assert len(shared.events("gpu.busy")) == 1


def test_a_submission_is_answered_with_its_job_and_done_once(shared: Daemon) -> None:
    """A client that asks again after a fault must not start a second training."""
    payload = {"text": shared.text(iters=1, data="d"), "name": "job.yaml", "base": str(shared.home.path)}
    key = "0123456789abcdef" * 2
    first = shared.requests().ask("submit", payload, key=key)
    assert first.ok
    assert JOB_ID.fullmatch(first.job or "")
    second = shared.requests().ask("submit", payload, key=key)
    assert second.job == first.job
    wait_until("it is done", lambda: [job.state for job in shared.jobs() if job.request == key] == [State.DONE])


def test_a_bad_submission_is_answered_with_what_is_wrong(shared: Daemon) -> None:
    """The person is at the terminal: the reason belongs there, not into a folder."""
    payload = {"text": "model: x\nbatch_sise: 4\n", "name": "job.yaml", "base": "/tmp"}
    answer = shared.requests().ask("submit", payload)
    with pytest.raises(JobRejected, match="batch_sise") as caught:
        answer.raise_if_refused()
    assert caught.value.where == "job.yaml, line 2"
    assert not list(shared.home.rejected.iterdir())
    assert not list(shared.home.taking.iterdir())
    nonsense = shared.requests().ask("cancel", {"job": "../../etc"})
    assert not nonsense.ok
    with pytest.raises(NoSuchJob):
        shared.requests().ask("cancel", {"job": "20260101-000000-none"}).raise_if_refused()


def test_without_a_daemon_a_client_is_told_at_once(daemon: Daemon) -> None:
    """Waiting half a minute for somebody who is not there helps nobody."""
    began = time.monotonic()
    with pytest.raises(DaemonUnavailable, match="does not run"):
        daemon.requests()
    assert time.monotonic() - began < 1


def test_a_waiting_job_is_cancelled_at_once(shared: Daemon) -> None:
    """It has not begun; there is nothing to wait for."""
    shared.drop("busy.yaml", shared.text(iters=1000))
    busy = shared.wait_for_state("busy", State.RUNNING)
    shared.drop("waiting.yaml", shared.text())
    job = shared.wait_for_state("waiting", State.QUEUED)
    assert shared.requests().ask("cancel", {"job": job.id}).ok
    assert shared.job("waiting").state is State.CANCELLED
    assert shared.requests().ask("cancel", {"job": busy.id}).ok
    shared.wait_for_state("busy", State.CANCELLED)


@pytest.mark.parametrize("seed", [0, 4], ids=["listens", "ignores all signals"])
def test_a_running_job_is_cancelled_within_ten_seconds(shared: Daemon, seed: int) -> None:
    """A person who cancels wants the machine back, whatever state the training is in."""
    shared.drop(f"running{seed}.yaml", shared.text(iters=1000, seed=seed))
    job = shared.wait_for_state(f"running{seed}", State.RUNNING)
    training = shared.training(job.id)
    began = time.monotonic()
    assert shared.requests().ask("cancel", {"job": job.id}).ok
    job = shared.wait_for_state(f"running{seed}", State.CANCELLED, seconds=10)
    assert time.monotonic() - began < 10
    assert not psutil.pid_exists(training.pid)
    assert job.reason == "cancelled on request"
    shared.drop(f"next{seed}.yaml", shared.text(iters=1))
    shared.wait_for_state(f"next{seed}", State.DONE)
