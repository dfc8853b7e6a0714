"""What becomes of a job when its training process has ended: a decision from data alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from qlora_engine.job.errors import Exit
from qlora_engine.job.events import Event
from qlora_engine.job.exits import ExitRecord, Stall
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from qlora_engine.job.text import duration

REST = timedelta(seconds=2)
REFUSED_REST = timedelta(seconds=30)  # a full disk, say
FIRST_BACKOFF, LONGEST_BACKOFF = timedelta(minutes=1), timedelta(hours=1)  # of `retries`; each is twice the one before
MAX_CRASHES = 3  # in a row without a new checkpoint
MAX_REBOOTS = 2  # of the machine while the job ran; it may be what brings the machine down
MAX_STALLS = 3  # in one phase without a new checkpoint
STALL_REMEDY = (
    "Set batch_size: 1 with more grad_accumulation_steps, max_seq_length: 256, and a lower memory.cleanup_every; check "
    "that no other program keeps the GPU busy (Activity Monitor on a Mac). Then submit the job again."
)

FUSE_STALL_REMEDY = "Check that the disk is well, and that no other program keeps the GPU busy. Then `qlora retry` it."

Outcome = Literal["done", "stopped", "stalled", "out_of_memory", "failed", "crashed", "lost"]


@dataclass(frozen=True)
class Move:
    """Where the job goes, why, and what its exit was."""

    target: State
    outcome: Outcome
    reason: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    rest: timedelta = REST  # before it starts again, if nobody asked it to stop
    again: timedelta | None = None  # before it is tried again, while others may go first


@dataclass(frozen=True)
class Evidence:
    """What is known of an attempt that has ended."""

    exit: ExitRecord | None  # None when nobody was left to write it
    failure: Event | None = None  # its `training.failed`
    finished: bool = False  # it said `training.done`, so the result is on disk
    rung: Event | None = None  # its `ladder.rung`, if it ended because of it
    rebooted: bool = False  # the machine has started again since


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
    if record.stop_reason and move.target is State.QUEUED:
        return replace(move, target=record.after_stop, reason=record.stop_reason)
    if move.target is State.FAILED and record.retried < record.retries and _may_pass(move, evidence):
        return _try_again(record, move)
    return move


def record_changes(record: JobRecord, move: Move, over: datetime | None, now: datetime) -> dict[str, Any]:
    """What the end of an attempt changes in its job's record beside the state.

    Args:
        record: as it was.
        move: where the job goes.
        over: when the attempt ended; None where nobody knows.
        now: the time.
    """
    changes: dict[str, Any] = {"after_stop": State.QUEUED, "stop_reason": "", "running_since": None}
    changes["rests_until"] = now + move.again if move.again is not None else None
    if move.target is not State.CANCELLED:
        changes["outdone_by"] = None  # it came to its end before it could be stopped
    if record.running_since is not None and over is not None:
        changes["ran"] = record.ran + max(0.0, (over - record.running_since).total_seconds())
    return {**changes, **move.changes}


def _may_pass(move: Move, evidence: Evidence) -> bool:
    """Whether the same job may well end otherwise; a job file, data or numbers that cannot be right stay so."""
    missed_a_service = evidence.exit is not None and evidence.exit.code == Exit.UNAVAILABLE
    return move.outcome in ("crashed", "stalled") or missed_a_service


def _try_again(record: JobRecord, move: Move) -> Move:
    number = record.retried + 1
    pause = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** (number - 1))
    reason = f"{move.reason} · tried again in {duration(pause.total_seconds())}, {number} of {record.retries}"
    changes = {"crashes": 0, "stalls": {}, "retried": number}
    return Move(State.QUEUED, move.outcome, reason, changes, again=pause)


def _by_exit(record: JobRecord, evidence: Evidence, output: str) -> Move:
    ended = evidence.exit
    # What it said it had done is on disk; how the process ended after that does not matter.
    if evidence.finished or (ended is not None and ended.code == Exit.OK):
        return Move(State.DONE, "done", changes={"crashes": 0, "stalls": {}})
    if ended is None and evidence.rebooted:
        return _after_reboot(record)
    if ended is None:
        return Move(State.QUEUED, "lost", f"its process ended without a trace; {record.goes_on}")
    return _by_its_word(record, ended, evidence, output) or _by_its_end(record, ended, output)


def _by_its_word(record: JobRecord, ended: ExitRecord, evidence: Evidence, output: str) -> Move | None:
    """What the worker or the process itself gave as the reason."""
    if ended.stalled is not None and record.state is not State.STOPPING:
        return _after_stall(record, ended.stalled, output)
    if ended.code == Exit.TEMPFAIL:
        if evidence.rung is not None:
            return _after_memory(str(evidence.rung.get("reason")), str(evidence.rung.get("change")))
        where = "at a checkpoint; it goes on from there" if record.kind == "train" else f"at once; {record.goes_on}"
        return Move(State.QUEUED, "stopped", f"stopped {where}")
    if ended.code == Exit.OSERR:
        why = _failure_reason(evidence.failure) if evidence.failure else f"the system refused; look into {output}"
        return Move(State.QUEUED, "stopped", f"{why} · it is tried again", rest=REFUSED_REST)
    if evidence.failure is not None and ended.code is not None and Exit.USAGE <= ended.code <= Exit.CONFIG:
        return Move(State.FAILED, "failed", _failure_reason(evidence.failure))
    return None


def _by_its_end(record: JobRecord, ended: ExitRecord, output: str) -> Move:
    """A process that gave no reason."""
    if record.state is State.STOPPING or ended.signal == "SIGTERM":
        early = "stopped before it reached a checkpoint" if record.kind == "train" else "stopped"
        return Move(State.QUEUED, "stopped", f"{early}; {record.goes_on}")
    # Before training began nothing can have chosen a smaller layout, and fusing has none: that would go on for ever.
    if ended.memory is not None and record.state is State.RUNNING and record.kind == "train":
        return _after_memory(ended.memory, "with a smaller layout")
    return _after_crash(record, ended, output)


def _after_reboot(record: JobRecord) -> Move:
    reboots = record.reboots + 1
    if reboots < MAX_REBOOTS:
        reason = f"the machine went down while it ran, {reboots} of {MAX_REBOOTS}; {record.goes_on}"
        return Move(State.QUEUED, "lost", reason, {"reboots": reboots})
    reason = (
        f"the machine went down {reboots} times while it ran, so it may be the cause · look into the system's log, "
        f"{_less(record)} · `qlora release {record.id}` lets it go on"
    )
    return Move(State.HELD, "lost", reason, {"reboots": 0})  # released, it has as many again


def _after_stall(record: JobRecord, stalled: Stall, output: str) -> Move:
    times = record.stalls.get(stalled.phase, 0) + 1
    changes = {"stalls": {**record.stalls, stalled.phase: times}}
    if times < MAX_STALLS:
        reason = f"stalled in {stalled}, {times} of {MAX_STALLS}{_in_vain(record)}; {record.goes_on}"
        return Move(State.QUEUED, "stalled", reason, changes)
    reason = (
        f"stalled {times} times in {stalled.phase}{_in_vain(record)}, last at step {stalled.step} · "
        f"its stacks are in {Path(output).with_name('events.jsonl')} · "
        f"{STALL_REMEDY if record.kind == 'train' else FUSE_STALL_REMEDY}"
    )
    return Move(State.FAILED, "stalled", reason, changes)


def _after_memory(why: str, how: str) -> Move:
    return Move(State.QUEUED, "out_of_memory", f"ran out of memory ({why}); it goes on from its checkpoint: {how}")


def _after_crash(record: JobRecord, ended: ExitRecord, output: str) -> Move:
    crashes = record.crashes + 1
    how = ended.signal or f"exit code {ended.code}"
    if ended.memory is not None:
        how += f", out of memory: {ended.memory}"
    changes = {"crashes": crashes}
    if crashes >= MAX_CRASHES:
        reason = f"crashed {crashes} times in a row{_in_vain(record)}, last by {how}; look into {output}"
        return Move(State.FAILED, "crashed", reason, changes)
    reason = f"crashed ({how}), {crashes} of {MAX_CRASHES}{_in_vain(record)}; {record.goes_on}"
    return Move(State.QUEUED, "crashed", reason, changes)


def _in_vain(record: JobRecord) -> str:
    return " without a new checkpoint" if record.kind == "train" else ""


def _less(record: JobRecord) -> str:
    return "lower memory.limit_gb or batch_size" if record.kind == "train" else "make room in memory"


def _failure_reason(failure: Event) -> str:
    parts = (failure.get("what"), failure.get("where"), failure.get("remedy"))
    return " · ".join(str(part) for part in parts if part)
