"""Which job runs next: a decision from data alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import ACTIVE, State


@dataclass(frozen=True)
class Conditions:
    """What must hold for any job to start."""

    queue_answers: bool
    gpu_free: bool
    resting: Mapping[str, datetime] = field(default_factory=dict)  # jobs that may not start before a time


def next_job(jobs: Collection[JobRecord], now: datetime, conditions: Conditions) -> str | None:
    """The id of the job to start now, or None.

    The highest priority goes first, and of equals the oldest. One job is active at a time.
    """
    if not conditions.queue_answers or not conditions.gpu_free:
        return None
    if any(job.state in ACTIVE for job in jobs):
        return None
    first = min((job for job in jobs if job.state is State.QUEUED), key=_order, default=None)
    if first is None or conditions.resting.get(first.id, now) > now:
        return None  # it keeps its place while it rests
    return first.id


def _order(job: JobRecord) -> tuple[int, datetime, str]:
    return (-job.priority, job.created, job.id)
