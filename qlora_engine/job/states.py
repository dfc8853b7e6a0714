"""The states of a job and the legal moves between them, one table."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a job stands. Only the daemon moves it."""

    ACCEPTED = "accepted"  # on disk; not yet examined to the end
    QUEUED = "queued"  # waits for its turn
    BLOCKED = "blocked"  # waits for another job
    HELD = "held"  # waits for a person
    STARTING = "starting"  # given to the worker; no training process has reported yet
    RUNNING = "running"  # its training process holds the GPU
    STOPPING = "stopping"  # asked to stop at a checkpoint
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ACTIVE = frozenset({State.STARTING, State.RUNNING, State.STOPPING})
FINAL = frozenset({State.DONE, State.FAILED, State.CANCELLED})

LEGAL_MOVES: dict[State, frozenset[State]] = {
    State.ACCEPTED: frozenset({State.QUEUED, State.BLOCKED, State.HELD, State.FAILED, State.CANCELLED}),
    State.QUEUED: frozenset({State.STARTING, State.BLOCKED, State.HELD, State.FAILED, State.CANCELLED}),
    State.BLOCKED: frozenset({State.QUEUED, State.HELD, State.FAILED, State.CANCELLED}),
    State.HELD: frozenset({State.QUEUED, State.BLOCKED, State.CANCELLED}),
    # From starting or running to held: the machine went down under it too often.
    State.STARTING: frozenset({State.RUNNING, State.STOPPING, State.QUEUED, State.HELD, State.FAILED}),
    State.RUNNING: frozenset({State.STOPPING, State.QUEUED, State.HELD, State.DONE, State.FAILED}),
    # A job that is asked to stop may still reach its end first.
    State.STOPPING: frozenset({State.QUEUED, State.HELD, State.CANCELLED, State.DONE, State.FAILED}),
    State.DONE: frozenset(),
    # Only on request: the same run goes on from its checkpoint.
    State.FAILED: frozenset({State.QUEUED, State.BLOCKED}),
    State.CANCELLED: frozenset({State.QUEUED, State.BLOCKED}),
}


class IllegalMove(AssertionError):
    """A state change that the table does not hold: a bug of ours, never a user's mistake."""

    def __init__(self, job: str, source: State, target: State) -> None:
        super().__init__(job, source, target)
        self.job, self.source, self.target = job, source, target

    def __str__(self) -> str:
        return f"job {self.job} cannot go from {self.source} to {self.target}"


def check_move(job: str, source: State, target: State) -> None:
    """Raise `IllegalMove` unless `source` may become `target`."""
    if target not in LEGAL_MOVES[source]:
        raise IllegalMove(job, source, target)
