"""What becomes of a job when its training process has ended."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from qlora_daemon.outcome import Evidence, Move, after_exit
from qlora_engine.job.events import Event
from qlora_engine.job.exits import ExitRecord
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
) -> Move:
    record = JobRecord(
        id="20261122-000000-a", name="a", state=state, created=NOW, changed=NOW,
        attempt=1, crashes=crashes, cancel_requested=cancel,
    )  # fmt: skip
    ended = None if returncode is None else ExitRecord.of(returncode, attempt=1, started=NOW, ended=NOW)
    move = after_exit(record, Evidence(ended, failure, finished), output="output.log")
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


def test_every_exit_is_decided_in_every_active_state() -> None:
    """An exit without a legal move would leave the job active for ever."""
    for state in (State.STARTING, State.RUNNING, State.STOPPING):
        for returncode in (None, *range(-31, 0), *range(256)):
            decide(returncode, state)
