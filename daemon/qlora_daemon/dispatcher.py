"""Which job runs next, and which one must stop for it: decisions from data alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from qlora_engine.job.hindrance import Hindrance, hindering
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from qlora_engine.job.turn import active_of, first_ready


@dataclass(frozen=True)
class Conditions:
    """What must hold for any job to start.

    Attributes:
        queue_answers: Redis answers and a worker runs.
        gpu_free: nobody holds the GPU.
        resting: jobs that have just come back, and may not start before a time.
        paused: nothing starts: a person paused the queue.
        hindrances: what keeps some jobs or all from training: power, heat, memory, the hour.
        looked: these are known; nothing starts before.
    """

    queue_answers: bool
    gpu_free: bool
    resting: Mapping[str, datetime] = field(default_factory=dict)
    paused: bool = False
    hindrances: tuple[Hindrance, ...] = ()
    looked: bool = True

    def rests(self, job: JobRecord, now: datetime) -> bool:
        """Whether a job has just come back, and may not start yet."""
        return self.resting.get(job.id, now) > now


@dataclass(frozen=True)
class Stop:
    """An active job that must stop at a checkpoint, why, and where it goes then."""

    job: str
    reason: str
    after_stop: State = State.QUEUED


def next_job(jobs: Collection[JobRecord], now: datetime, conditions: Conditions) -> str | None:
    """The id of the job to start now, or None.

    The urgent go first, then the highest priority, and of equals the oldest; one that must wait for a time is passed
    over until then, and so is one that something hinders. One job is active at a time.
    """
    if conditions.paused or not conditions.queue_answers or not conditions.gpu_free or not conditions.looked:
        return None
    if active_of(jobs) is not None:
        return None
    first = first_ready(jobs, now, conditions.hindrances)
    if first is None or conditions.rests(first, now):
        return None  # it keeps its place while it rests
    return first.id


def to_stop(jobs: Collection[JobRecord], now: datetime, conditions: Conditions) -> Stop | None:
    """The active job that must stop, if it must.

    It has trained for long enough, the queue is paused, something hinders it, or an urgent one waits.
    """
    job = active_of(jobs)
    if job is None or job.state is State.STOPPING:
        return None
    if (limit := job.max_runtime) is not None and _ran(job, now) >= limit:
        reason = (
            f"it has trained for its max_runtime of {timedelta(seconds=round(limit))} · "
            "`qlora release` gives it as much again"
        )
        return Stop(job.id, reason, State.HELD)
    if (why := _why_it_may_not_train(job, conditions)) is not None:
        return Stop(job.id, f"{why}; {job.goes_on}")
    if job.urgent or not conditions.queue_answers:
        return None
    urgent = first_ready([other for other in jobs if other.urgent], now, conditions.hindrances)
    if urgent is None or conditions.rests(urgent, now):
        return None  # it could not start, and the GPU would do nothing
    return Stop(job.id, f"makes way for {urgent.id}; {job.goes_on}")


def _why_it_may_not_train(job: JobRecord, conditions: Conditions) -> str | None:
    if conditions.paused:
        return "the queue is paused"
    hindrance = hindering(job, (one for one in conditions.hindrances if one.stops_what_trains))
    return hindrance.what if hindrance else None


def _ran(job: JobRecord, now: datetime) -> float:
    """Seconds that it has trained, this attempt's among them; a clock that was set back takes nothing away."""
    here = (now - job.running_since).total_seconds() if job.running_since is not None else 0.0
    return job.ran + max(0.0, here)
