"""The attempt that is under way, as the owner knows it, and the ladder by which it is stopped."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field

from qlora_daemon.watch import RunWatch
from qlora_engine.job.events import Event
from qlora_engine.job.validations import Outdone

KILL_SECONDS = 3.0  # from the second request to stop to the kill


@dataclass
class Active:
    """What the owner knows of the active attempt beside its record."""

    job: str
    attempt: int
    watch: RunWatch
    worker: int | None  # generation of the worker that may have taken it; None: none of ours
    failure: Event | None = None
    finished: bool = False
    rung: Event | None = None  # while it may be what ends it
    outdone: Outdone | None = None  # the validation for which it is ended
    no_trace_since: float | None = None
    in_redis_alone: int = 0  # looks; counted, for a machine that sleeps makes seconds of nights
    looked: float = 0.0
    stored: float = 0.0
    stop_rungs: list[tuple[float, signal.Signals]] = field(default_factory=list)  # when to send what


def rungs(first: float, patience: float) -> list[tuple[float, signal.Signals]]:
    """Stop at a checkpoint, after `patience` seconds stop at once, then be killed."""
    second = first + patience
    return [(first, signal.SIGTERM), (second, signal.SIGTERM), (second + KILL_SECONDS, signal.SIGKILL)]
