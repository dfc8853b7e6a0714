"""A training process that hangs is noticed, shows where it hangs, and goes on from its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qlora_engine.job.events import Event, parse_line
from qlora_engine.job.exits import ExitRecord
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from support.service import Daemon, daemon_in, short_home


@pytest.fixture(scope="module")
def watchful() -> Iterator[Daemon]:
    """A daemon whose worker takes one and a half seconds without progress for a stall."""
    with short_home() as folder, daemon_in(folder, environment={"QLORAD_STALL_SECONDS": "1.5"}) as found:
        found.start()
        yield found


def stalls(daemon: Daemon, job: JobRecord) -> list[Event]:
    """As they stand in the run's own events."""
    lines = daemon.home.run(job.id).events.read_bytes().splitlines()
    events = [event for event in map(parse_line, lines) if event is not None]
    return [event for event in events if event["event"] == "training.stalled"]


def test_a_stopped_process_is_ended_and_the_job_goes_on(watchful: Daemon) -> None:
    """A night's run must not wait for a person because of one process that stands still."""
    watchful.drop("still.yaml", watchful.text(seed=6, iters=20))
    job = watchful.wait_for_state("still", State.DONE)
    assert (job.attempt, job.crashes, job.stalls) == (2, 0, {})
    (stall,) = stalls(watchful, job)
    assert (stall["phase"], stall["attempt"]) == ("train", 1)
    assert 10 <= stall["step"] <= 12
    assert stall["seconds"] >= stall["allowed"] == 1.5
    assert "the process was stopped" in stall["stacks"]
    assert "stand_in_task.py" in stall["stacks"]
    assert [event["outcome"] for event in watchful.events("job.exited", job=job.id)] == ["stalled", "done"]
    again = next(event for event in watchful.events("job.state", job=job.id) if event["from"] == "running")
    assert "stalled in train at step" in again["reason"]


def test_three_stalls_in_one_place_fail_the_job_with_what_to_try(watchful: Daemon) -> None:
    """A job that hangs for ever in native code, deaf to signals, must not keep the others waiting."""
    watchful.drop("hung.yaml", watchful.text(seed=7))
    job = watchful.wait_for_state("hung", State.FAILED)
    assert (job.attempt, job.crashes, job.stalls) == (3, 0, {"train": 3})
    for remedy in ("batch_size: 1", "grad_accumulation_steps", "max_seq_length: 256", "memory.cleanup_every", "GPU"):
        assert remedy in job.reason
    found = stalls(watchful, job)
    assert [stall["attempt"] for stall in found] == [1, 2, 3]
    assert all("Thread" in stall["stacks"] and "in train" in stall["stacks"] for stall in found)
    ended = ExitRecord.load(watchful.home.run(job.id).exit(3))
    assert ended is not None
    assert (ended.signal, str(ended.stalled), ended.memory) == ("SIGKILL", "train at step 2", None)


def test_a_death_for_want_of_memory_is_no_crash(watchful: Daemon) -> None:
    """The next attempt lays itself out smaller; three crashes would have failed the job."""
    watchful.drop("greedy.yaml", watchful.text(seed=8))
    job = watchful.wait_for_state("greedy", State.DONE)
    assert (job.attempt, job.crashes) == (3, 0)
    died = ExitRecord.load(watchful.home.run(job.id).exit(1))
    assert died is not None
    assert "std::bad_alloc" in (died.memory or "")
    outcomes = [event["outcome"] for event in watchful.events("job.exited", job=job.id)]
    assert outcomes == ["out_of_memory", "out_of_memory", "done"]
    reasons = [event["reason"] for event in watchful.events("job.state", job=job.id) if event["from"] == "running"]
    assert "std::bad_alloc" in reasons[0]
    assert reasons[1] == "ran out of memory (no memory); it goes on from its checkpoint: micro-batches of 2"
