"""What becomes of a job when its training process has ended: a decision from data alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from qlora_engine.job.errors import Exit
from qlora_engine.job.events import Event
from qlora_engine.job.exits import ExitRecord
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State

REST = timedelta(seconds=2)
REFUSED_REST = timedelta(seconds=30)  # a full disk, say
MAX_CRASHES = 3  # in a row without a new checkpoint

Outcome = Literal["done", "stopped", "failed", "crashed", "lost"]


@dataclass(frozen=True)
class Move:
    """Where the job goes, why, and what its exit was."""

    target: State
    outcome: Outcome
    reason: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    rest: timedelta = REST  # before it starts again, if nobody asked it to stop


@dataclass(frozen=True)
class Evidence:
    """What is known of an attempt that has ended."""

    exit: ExitRecord | None  # None when nobody was left to write it
    failure: Event | None = None  # its `training.failed`
    finished: bool = False  # it said `training.done`, so the result is on disk


def after_exit(record: JobRecord, evidence: Evidence, *, output: str) -> Move:
    """What becomes of a job.

    A stop that was asked for, and the end of the worker or the machine, never count as crashes of the job.

    Args:
        record: the job, in an active state.
        evidence: what is known of the attempt.
        output: where the process's own output lies, for the person who looks for the cause.
    """
    move = _by_exit(record, evidence, output)
    if record.cancel_requested and move.target is not State.DONE:
        return Move(State.CANCELLED, move.outcome, "cancelled on request")
    return move


def _by_exit(record: JobRecord, evidence: Evidence, output: str) -> Move:
    ended = evidence.exit
    # What it said it had done is on disk; how the process ended after that does not matter.
    if evidence.finished or (ended is not None and ended.code == Exit.OK):
        return Move(State.DONE, "done", changes={"crashes": 0})
    if ended is None:
        return Move(State.QUEUED, "lost", "its process ended without a trace; it goes on from its checkpoint")
    if ended.code in (Exit.TEMPFAIL, Exit.OSERR):
        return _came_back(ended.code, evidence.failure, output)
    if evidence.failure is not None and ended.code is not None and Exit.USAGE <= ended.code <= Exit.CONFIG:
        return Move(State.FAILED, "failed", _failure_reason(evidence.failure))
    if record.state is State.STOPPING or ended.signal == "SIGTERM":
        return Move(State.QUEUED, "stopped", "stopped before it reached a checkpoint; it goes on from the last")
    return _after_crash(record, ended, output)


def _came_back(code: int, failure: Event | None, output: str) -> Move:
    if code == Exit.TEMPFAIL:
        return Move(State.QUEUED, "stopped", "stopped at a checkpoint; it goes on from there")
    why = _failure_reason(failure) if failure else f"the system refused; look into {output}"
    return Move(State.QUEUED, "stopped", f"{why} · it is tried again", rest=REFUSED_REST)


def _after_crash(record: JobRecord, ended: ExitRecord, output: str) -> Move:
    crashes = record.crashes + 1
    how = ended.signal or f"exit code {ended.code}"
    changes = {"crashes": crashes}
    if crashes >= MAX_CRASHES:
        reason = f"crashed {crashes} times in a row without a new checkpoint, last by {how}; look into {output}"
        return Move(State.FAILED, "crashed", reason, changes)
    reason = f"crashed ({how}), {crashes} of {MAX_CRASHES} without a new checkpoint; it goes on from the last"
    return Move(State.QUEUED, "crashed", reason, changes)


def _failure_reason(failure: Event) -> str:
    parts = (failure.get("what"), failure.get("where"), failure.get("remedy"))
    return " · ".join(str(part) for part in parts if part)
