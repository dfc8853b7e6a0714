"""Whatever process is killed, the job goes on, and never twice at once."""

from __future__ import annotations

import time

import psutil

from qlora_engine.job.events import parse_line
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from qlora_worker.connection import connect
from support.service import Daemon, wait_until


def begin(daemon: Daemon, name: str, iters: int = 60) -> JobRecord:
    """A job that runs and has a checkpoint."""
    daemon.drop(f"{name}.yaml", daemon.text(iters=iters))
    job = daemon.wait_for_state(name, State.RUNNING)
    daemon.wait_for("checkpoint.saved", job=job.id)
    return job


def goes_on(daemon: Daemon, job: JobRecord, *, within: float = 20.0) -> JobRecord:
    """The job is done in the end, without steps trained twice behind a checkpoint, and with no crash counted."""
    began = time.monotonic()
    wait_until("it trains again", lambda: len(daemon.events("training.started", job=job.id)) > 1, within)
    assert time.monotonic() - began < within
    done = daemon.wait_for_state(job.name, State.DONE)
    checkpoint = 0
    for line in daemon.home.run(job.id).events.read_bytes().splitlines():
        event = parse_line(line)
        assert event is not None
        if event["event"] == "training.resumed":
            assert event["step"] == checkpoint
        if event["event"] == "checkpoint.saved":
            checkpoint = event["step"]
    assert done.crashes == 0
    return done


def test_a_killed_daemon_takes_its_processes_along_and_the_next_goes_on(shared: Daemon) -> None:
    """An orphan that trains on would do so beside the next daemon's training."""
    job = begin(shared, "job1")
    training, worker = shared.training(job.id), shared.child("worker")
    shared.process.kill()
    shared.process.wait()
    psutil.wait_procs([training, worker], timeout=5)
    assert not training.is_running()
    assert not worker.is_running()
    shared.start()
    assert goes_on(shared, job).attempt == 2
    assert shared.events("job.exited", job=job.id)[0]["outcome"] == "stopped"


def test_a_killed_worker_costs_at_most_the_work_since_the_checkpoint(shared: Daemon) -> None:
    """With its worker gone nobody writes down how the training ended; the job may not be forgotten over it."""
    job = begin(shared, "job2")
    shared.child("worker").kill()
    goes_on(shared, job)
    assert shared.events("job.exited", job=job.id)[0]["outcome"] == "lost"


def test_a_killed_training_process_is_a_crash_and_tried_again(shared: Daemon) -> None:
    """The system kills the largest process first when memory runs out."""
    job = begin(shared, "job3")
    shared.training(job.id).kill()
    done = shared.wait_for_state("job3", State.DONE)
    assert done.attempt == 2
    assert shared.events("job.exited", job=job.id)[0]["outcome"] == "crashed"


def test_a_killed_valkey_is_started_again_and_training_does_not_notice(shared: Daemon) -> None:
    """Redis is the dispatcher, not the truth: a job that runs does not need it."""
    job = begin(shared, "job4")
    shared.child("valkey").kill()
    shared.wait_for_state("job4", State.DONE)
    assert len(shared.events("training.started", job=job.id)) == 1
    assert shared.events("child.restarting", child="valkey")
    shared.drop("next4.yaml", shared.text(iters=1))
    shared.wait_for_state("next4", State.DONE)


def test_all_killed_at_once_and_started_again(shared: Daemon) -> None:
    """A power cut."""
    job = begin(shared, "job5")
    for process in shared.processes():
        process.kill()
    shared.process.wait()
    shared.start()
    goes_on(shared, job)


def test_a_wiped_redis_loses_no_job(shared: Daemon) -> None:
    """Disk is the truth: every record in Redis may vanish at any time."""
    job = begin(shared, "job6")
    shared.drop("queued.yaml", shared.text(iters=1))
    shared.wait_for_state("queued", State.QUEUED)
    with connect(shared.settings(), timeout=2) as connection:
        connection.flushall()
    shared.wait_for_state("job6", State.DONE)
    shared.wait_for_state("queued", State.DONE)
    assert len(shared.events("training.started", job=job.id)) == 1
    with connect(shared.settings(), timeout=2) as connection:
        connection.flushall()
    shared.drop("after6.yaml", shared.text(iters=1))
    shared.wait_for_state("after6", State.DONE)
    payload = {"text": shared.text(iters=1), "name": "asked.yaml", "base": "/"}
    assert shared.requests().ask("submit", payload).ok


def test_a_damaged_file_of_valkey_is_moved_aside(shared: Daemon) -> None:
    """Valkey refuses to start with it; the run folders hold all that is needed."""
    with connect(shared.settings(), timeout=2) as connection:
        for number in range(200):
            connection.set(f"padding:{number}", "x" * 100)
    assert shared.stop() == 0
    file = next((shared.home.state / "appendonlydir").glob("*.incr.aof"))
    content = bytearray(file.read_bytes())
    content[2000:2100] = bytes(100)
    file.write_bytes(content)
    shared.start()
    assert shared.wait_for("queue.damaged")["moved_to"]
    shared.drop("after7.yaml", shared.text(iters=1))
    shared.wait_for_state("after7", State.DONE)


def test_a_worker_that_is_asked_to_end_is_replaced(shared: Daemon) -> None:
    """Somebody tidies up the process list; the training reaches its checkpoint all the same."""
    job = begin(shared, "job8")
    shared.child("worker").terminate()
    goes_on(shared, job)
    assert shared.events("training.stopped", job=job.id)


def test_a_sleeping_machine_does_not_start_a_job_twice(shared: Daemon) -> None:
    """Stopped and continued, every process finds that time has jumped; the job must go on as it was."""
    job = begin(shared, "job9")
    frozen = shared.processes()
    for process in frozen:
        process.suspend()
    time.sleep(3)  # longer than the time after which an attempt without a trace is lost
    for process in reversed(frozen):
        process.resume()
    shared.wait_for_state("job9", State.DONE)
    assert len(shared.events("training.started", job=job.id)) == 1
