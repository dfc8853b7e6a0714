"""What does not fit is put right by a real daemon, with an event for each thing."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest

from qlora_engine.job.states import State
from qlora_worker.connection import connect, keys_of
from support.service import Daemon, wait_until


def edit_record(daemon: Daemon, job_id: str, **changes: object) -> None:
    path = daemon.home.run(job_id).state
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def kill_all(daemon: Daemon) -> None:
    for process in daemon.processes():
        process.kill()
    daemon.process.wait()
    psutil.wait_procs(daemon.processes(), timeout=5)


@pytest.mark.embedded
def test_what_an_earlier_daemon_left_in_redis_is_cleared_with_a_word(daemon: Daemon) -> None:
    """A worker's key and attempts without a job stay in Redis for up to an hour, and mislead whoever looks."""
    daemon.start()
    queue = keys_of(daemon.settings()).queue
    with connect(daemon.settings(), timeout=2) as connection:
        connection.sadd("rq:workers", f"rq:worker:{queue}-1-left", "rq:worker:another-home")
        connection.hset(f"rq:worker:{queue}-1-left", "state", "busy")
        connection.rpush(f"rq:queue:{queue}:intermediate", f"{queue}-20250101-000000-x-1")
        connection.hset(f"rq:job:{queue}-20250101-000000-x-1", "origin", queue)
        daemon.child("valkey").suspend()  # until its end has been noticed nothing may be looked at
    daemon.child("valkey").kill()
    wait_until("it was put right", lambda: len(daemon.events("state.reconciled")) >= 2)
    with connect(daemon.settings(), timeout=2) as connection:
        assert not connection.exists(f"rq:worker:{queue}-1-left", f"rq:job:{queue}-20250101-000000-x-1")
        assert connection.sismember("rq:workers", "rq:worker:another-home")
        assert connection.llen(f"rq:queue:{queue}:intermediate") == 0


def test_an_orphan_whose_attempt_is_over_is_ended(daemon: Daemon) -> None:
    """It would hold the GPU against every other job, for ever if it hangs."""
    daemon.home.make()
    job = "20250101-000000-gone"
    orphan = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)", "-m", "qlora_worker.task", job, "1", "--parent-fd", "0"],
        env=daemon.environment, process_group=0,
    )  # fmt: skip
    daemon.start()
    assert orphan.wait(10) == -9
    assert daemon.wait_for("state.reconciled", job=job)["subject"] == str(orphan.pid)


@pytest.mark.embedded
def test_a_run_folder_that_somebody_deletes_does_not_block_the_others(daemon: Daemon) -> None:
    """Its record could never be written again, and every try would fail like the first."""
    daemon.start()
    daemon.drop("first.yaml", daemon.text(iters=60))
    first = daemon.wait_for_state("first", State.RUNNING)
    daemon.drop("second.yaml", daemon.text(iters=1))
    second = daemon.wait_for_state("second", State.QUEUED)
    daemon.home.run(second.id).path.rename(daemon.home.path / "away")
    daemon.child("valkey").kill()  # a look at everything follows
    assert daemon.wait_for("state.reconciled", job=second.id)["found"] == "a job whose run folder is gone"
    daemon.wait_for_state(first.name, State.DONE)


def test_two_reboots_during_one_job_hold_it(daemon: Daemon) -> None:
    """A job that brings the machine down must not do so again at every start, for ever."""
    daemon.start()
    daemon.drop("panic.yaml", daemon.text(iters=400))
    for times in (1, 2):
        job = daemon.wait_for_state("panic", State.RUNNING)
        kill_all(daemon)
        edit_record(daemon, job.id, boot="6c0f0000-0000-4000-8000-000000000000")
        daemon.start()
        if times == 1:
            wait_until("it goes on", lambda: daemon.job("panic").attempt == 2)
            assert daemon.job("panic").reboots == 1
    job = daemon.wait_for_state("panic", State.HELD)
    assert "qlora release" in job.reason
    assert job.crashes == 0
