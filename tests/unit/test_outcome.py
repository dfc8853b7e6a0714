"""What becomes of a job when its training process has ended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from qlora_daemon.outcome import Evidence, Move, after_exit
from qlora_engine.job.events import Event
from qlora_engine.job.exits import ExitRecord, Stall
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State, check_move

NOW = datetime(2026, 11, 22, tzinfo=UTC)
FAILURE: Event = {"event": "training.failed", "what": "No.", "where": "there", "remedy": "Mend."}


def decide(
    returncode: int | None,
    state: State = State.RUNNING,
    *,
    crashes: int = 0,
    cancel: bool = False,
    failure: Event | None = None,
    finished: bool = False,
    stalled: Stall | None = None,
    stalls: dict[str, int] | None = None,
    memory: str | None = None,
    rung: Event | None = None,
    **wishes: Any,
) -> Move:
    record = JobRecord(
        id="20261122-000000-a", name="a", state=state, created=NOW, changed=NOW,
        attempt=1, crashes=crashes, stalls=stalls or {}, cancel_requested=cancel, **wishes,
    )  # fmt: skip
    ended = (
        ExitRecord.of(returncode, attempt=1, started=NOW, ended=NOW, stalled=stalled, memory=memory)
        if returncode is not None
        else None
    )
    move = after_exit(record, Evidence(ended, failure, finished, rung), output="output.log")
    if not (state is State.STARTING and move.target is State.DONE):  # which goes by way of running
        check_move(record.id, state, move.target)
    return move


@pytest.mark.parametrize(
    ("returncode", "target", "outcome"),
    [
        (0, State.DONE, "done"),
        (75, State.QUEUED, "stopped"),
        (-15, State.QUEUED, "stopped"),
        (-9, State.QUEUED, "crashed"),
        (-6, State.QUEUED, "crashed"),
        (1, State.QUEUED, "crashed"),
        (70, State.QUEUED, "crashed"),
        (None, State.QUEUED, "lost"),
    ],
)
def test_an_exit_without_a_word(returncode: int | None, target: State, outcome: str) -> None:
    """A job may only be lost to its own failure, never to how its process ended."""
    move = decide(returncode)
    assert (move.target, move.outcome) == (target, outcome)


@pytest.mark.parametrize("returncode", [64, 65, 66, 70, 73, 78])
def test_an_exit_with_a_reason_fails_the_job(returncode: int) -> None:
    """What the training process gave as the reason is what the person reads."""
    move = decide(returncode, failure=FAILURE)
    assert move.target is State.FAILED
    assert move.reason == "No. · there · Mend."


def test_three_crashes_in_a_row_fail_the_job() -> None:
    """The third says where to look; the count is kept for the first two."""
    assert decide(-11, crashes=0).changes == {"crashes": 1}
    assert decide(-11, crashes=1).target is State.QUEUED
    third = decide(-11, crashes=2)
    assert third.target is State.FAILED
    assert "SIGSEGV" in third.reason
    assert "output.log" in third.reason


@pytest.mark.parametrize("returncode", [-9, -6, 1, 75, None])
def test_a_stop_that_was_asked_for_is_never_a_crash(returncode: int | None) -> None:
    """The ladder ends in SIGKILL; three shutdowns must not fail a long job."""
    move = decide(returncode, State.STOPPING, crashes=2)
    assert move.target is State.QUEUED
    assert "crashes" not in move.changes


@pytest.mark.parametrize("returncode", [-9, -15, 1, 65, 75, None])
def test_a_cancelled_job_is_cancelled_however_it_ends(returncode: int | None) -> None:
    """Nothing that a person has cancelled may start again by itself."""
    assert decide(returncode, State.STOPPING, cancel=True, failure=FAILURE).target is State.CANCELLED


def test_a_job_that_reached_its_end_first_is_done() -> None:
    """Its result is on disk; calling it cancelled would throw hours away."""
    assert decide(0, State.STOPPING, cancel=True).target is State.DONE


def test_a_result_without_an_exit_is_a_result() -> None:
    """The worker was killed just as the training had written its result."""
    assert decide(None, finished=True).target is State.DONE
    assert decide(-9, finished=True).target is State.DONE  # it crashed on its way out, with the result on disk


def test_what_the_system_refuses_is_tried_again_after_a_rest() -> None:
    """A disk that was full for a minute may not cost a night's job."""
    move = decide(71, failure=FAILURE, crashes=2)
    assert (move.target, move.outcome) == (State.QUEUED, "stopped")
    assert "Mend." in move.reason
    assert move.rest > decide(75).rest
    assert decide(71).target is State.QUEUED


@pytest.mark.parametrize("returncode", [-9, -15, -10, 75, 1])
def test_a_stall_is_a_stall_however_the_process_ended_then(returncode: int) -> None:
    """The watchdog ended it; counted as crashes, two stalls and a crash would fail the job."""
    move = decide(returncode, stalled=Stall(phase="train", step=120), crashes=2)
    assert (move.target, move.outcome) == (State.QUEUED, "stalled")
    assert move.changes == {"stalls": {"train": 1}}
    assert "stalled in train at step 120" in move.reason


def test_three_stalls_in_one_phase_fail_the_job() -> None:
    """What stands still at the same place three times does so for ever."""
    place = Stall(phase="train", step=120)
    assert decide(-9, stalled=place, stalls={"train": 1, "load": 2}).changes == {"stalls": {"train": 2, "load": 2}}
    third = decide(-9, stalled=place, stalls={"train": 2})
    assert (third.target, third.outcome) == (State.FAILED, "stalled")
    assert "max_seq_length: 256" in third.reason
    assert decide(0, stalled=place, stalls={"train": 2}).target is State.DONE  # it had its result


def test_a_stall_while_the_job_is_being_stopped_is_a_stop() -> None:
    """The next start is on a machine that is not shutting down."""
    move = decide(-9, State.STOPPING, stalled=Stall(phase="save", step=3), stalls={"save": 2})
    assert (move.target, move.outcome, dict(move.changes)) == (State.QUEUED, "stopped", {})
    cancelled = decide(-9, State.STOPPING, stalled=Stall(phase="save", step=3), cancel=True)
    assert cancelled.target is State.CANCELLED


@pytest.mark.parametrize("returncode", [-9, -11, -6, 1])
def test_an_end_for_want_of_memory_is_no_crash(returncode: int) -> None:
    """The next attempt lays itself out smaller, as often as there are ways to."""
    move = decide(returncode, memory="killed by the system", crashes=2)
    assert (move.target, move.outcome, dict(move.changes)) == (State.QUEUED, "out_of_memory", {})
    assert "killed by the system" in move.reason


def test_want_of_memory_before_training_began_is_a_crash() -> None:
    """Nothing that early can step down, so it would be tried for ever."""
    move = decide(-11, State.STARTING, memory="SIGSEGV under a memory limit of 4 GB", crashes=2)
    assert (move.target, move.outcome) == (State.FAILED, "crashed")
    assert "memory limit of 4 GB" in move.reason


def test_a_step_down_the_ladder_says_what_changes() -> None:
    """A person who wonders why the job is slower finds it in its state."""
    rung: Event = {"event": "ladder.rung", "reason": "no room", "change": "micro-batches of 2"}
    move = decide(75, rung=rung)
    assert (move.target, move.outcome) == (State.QUEUED, "out_of_memory")
    assert "no room" in move.reason
    assert "micro-batches of 2" in move.reason
    assert decide(65, rung=rung, failure=FAILURE).target is State.FAILED  # no step was left


def test_every_exit_is_decided_in_every_active_state() -> None:
    """An exit without a legal move would leave the job active for ever."""
    for state in (State.STARTING, State.RUNNING, State.STOPPING):
        for returncode in (None, *range(-31, 0), *range(256)):
            decide(returncode, state)


def test_two_reboots_under_a_job_hold_it() -> None:
    """A job that panics the machine may not do so at every start, for ever."""
    record = JobRecord(
        id="20261122-000000-a", name="a", state=State.RUNNING, created=NOW, changed=NOW, attempt=1, reboots=0
    )
    once = after_exit(record, Evidence(None, rebooted=True), output="output.log")
    assert (once.target, once.changes) == (State.QUEUED, {"reboots": 1})
    twice = after_exit(record.noting(**once.changes), Evidence(None, rebooted=True), output="output.log")
    assert (twice.target, twice.changes) == (State.HELD, {"reboots": 0})
    check_move(record.id, State.RUNNING, State.HELD)
    assert "qlora release" in twice.reason


def test_a_reboot_after_its_exit_is_not_the_jobs() -> None:
    """The worker wrote down how it ended, so it was over before the machine went down."""
    record = JobRecord(id="20261122-000000-a", name="a", state=State.RUNNING, created=NOW, changed=NOW, attempt=1)
    ended = ExitRecord.of(75, attempt=1, started=NOW, ended=NOW)
    assert after_exit(record, Evidence(ended, rebooted=True), output="").target is State.QUEUED


@pytest.mark.parametrize(("retried", "minutes"), [(0, 1), (1, 2), (4, 16), (9, 60)])
def test_a_job_that_may_be_tried_again_is_later_each_time(retried: int, minutes: int) -> None:
    """What was bad luck passes; what is not must not keep the others waiting."""
    move = decide(-11, crashes=2, retries=10, retried=retried)
    assert (move.target, move.again) == (State.QUEUED, timedelta(minutes=minutes))
    assert move.changes == {"crashes": 0, "stalls": {}, "retried": retried + 1}
    assert f"{retried + 1} of 10" in move.reason
    assert "SIGSEGV" in move.reason
    assert decide(-11, crashes=2, retries=retried, retried=retried).target is State.FAILED


def test_what_would_fail_again_is_not_tried_again() -> None:
    """A job file, its data, numbers that cannot be right; a hub that did not answer is another matter."""
    for code, target in ((65, State.FAILED), (66, State.FAILED), (69, State.QUEUED)):
        assert decide(code, failure=FAILURE, retries=10).target is target


@pytest.mark.parametrize("returncode", [75, -9, -6, 1, None])
@pytest.mark.parametrize("target", [State.QUEUED, State.HELD])
def test_a_job_goes_where_its_stop_sends_it(returncode: int | None, target: State) -> None:
    """However it ended, and with the reason for which it was stopped."""
    sent = {"after_stop": target, "stop_reason": "makes way"}
    move = decide(returncode, State.STOPPING, **sent)
    assert (move.target, move.reason) == (target, "makes way")
    assert decide(0, State.STOPPING, **sent).target is State.DONE
    assert decide(returncode, State.STOPPING, cancel=True, **sent).target is State.CANCELLED


@pytest.mark.parametrize("returncode", [75, -15, -9, None])
def test_a_job_that_fuses_is_done_again_from_the_start(returncode: int | None) -> None:
    """It has no checkpoint, and must not speak of one."""
    move = decide(returncode, kind="fuse")
    assert move.target is State.QUEUED
    assert "it is done again from the start" in move.reason
    assert "checkpoint" not in move.reason


def test_a_job_that_fuses_and_runs_out_of_memory_fails_in_the_end() -> None:
    """It has no smaller layout: tried again for ever, it would keep the queue from all others."""
    move = decide(-9, kind="fuse", memory="the system killed it", crashes=2)
    assert move.target is State.FAILED
    assert "out of memory" in move.reason
