"""Whose turn it is among waiting jobs, and why one of them waits: decisions from records alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from qlora_engine.job.hindrance import Hindrance, hindering
from qlora_engine.job.pause import Pause
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from qlora_engine.job.when import too_early

Order = tuple[bool, int, datetime, str]


class Placed(Protocol):
    """What decides a job's place: the same in its record and in a line of a list."""

    @property
    def id(self) -> str:
        """Of the job."""

    @property
    def urgent(self) -> bool:
        """It goes before all others."""

    @property
    def priority(self) -> int:
        """The highest goes first."""

    @property
    def created(self) -> datetime:
        """When it was accepted."""


def order(job: Placed) -> Order:
    """Sorts jobs: the urgent first, then by priority, then the oldest."""
    return (not job.urgent, -job.priority, job.created, job.id)


def is_ready(job: JobRecord, now: datetime, hindrances: tuple[Hindrance, ...] = ()) -> bool:
    """Whether a job waits for nothing but its turn."""
    if job.state is not State.QUEUED:
        return False
    early = (job.not_before is not None and job.not_before > now) or (
        job.rests_until is not None and job.rests_until > now
    )
    return not early and (not hindrances or hindering(job, hindrances) is None)


def first_ready(jobs: Iterable[JobRecord], now: datetime, hindrances: tuple[Hindrance, ...] = ()) -> JobRecord | None:
    """The first in `order` of the jobs that are ready.

    Written for ten thousand of them, of which few are looked at twice.
    """
    first, urgent, priority = None, False, -(10**6)
    queued = State.QUEUED
    for job in jobs:
        if job.state is not queued or job.urgent < urgent or (job.urgent == urgent and job.priority < priority):
            continue
        if is_ready(job, now, hindrances) and (first is None or order(job) < order(first)):
            first, urgent, priority = job, job.urgent, job.priority
    return first


def active_of(jobs: Iterable[JobRecord]) -> JobRecord | None:
    """The active job, if there is one.

    By identity: the hash of an enumeration's member, which a set asks for, takes longer than all the rest.
    """
    starting, running, stopping = State.STARTING, State.RUNNING, State.STOPPING
    for job in jobs:
        state = job.state
        if state is running or state is starting or state is stopping:
            return job
    return None


@dataclass(frozen=True)
class Standing:
    """Where a job that waits for others stands: blocked, queued or held, and why."""

    state: State
    reason: str = ""


def standing(job: JobRecord, find: Callable[[str], JobRecord | None]) -> Standing:
    """What the jobs that it waits for make of a waiting job.

    Held when one of them did not come to a good end: going on without its result is for a person to decide.
    """
    others = [(job_id, find(job_id)) for job_id in job.after]
    for job_id, other in others:
        if other is None:
            return Standing(State.HELD, f"{job_id}, which it waits for, is gone · `qlora release` lets it go on")
        if other.state in (State.FAILED, State.CANCELLED) and not _was_outdone(other):
            how = "failed" if other.state is State.FAILED else "was cancelled"
            return Standing(State.HELD, f"{job_id}, which it waits for, {how} · `qlora release` lets it go on")
    waits_for = [
        job_id
        for job_id, other in others
        if other is not None and not (other.state is State.DONE or _was_outdone(other))
    ]
    if waits_for:
        more = f" and {len(waits_for) - 1} more" if len(waits_for) > 1 else ""
        return Standing(State.BLOCKED, f"waits for {waits_for[0]}{more}")
    return Standing(State.QUEUED)


def _was_outdone(job: JobRecord) -> bool:
    """It was ended since another job of its sweep is better, which is how a sweep may go."""
    return job.state is State.CANCELLED and job.outdone_by is not None


def why_it_waits(
    job: JobRecord, jobs: Iterable[JobRecord], pause: Pause, now: datetime, hindrances: tuple[Hindrance, ...] = ()
) -> str | None:
    """What a queued job waits for, for a person; None for one that is in another state, whose reason says it.

    Args:
        jobs: all of them.
        pause: the queue's.
        hindrances: that there are now.
    """
    if job.state is not State.QUEUED:
        return None
    if early := too_early(job.not_before, job.rests_until, now):
        return f"it {early}"
    if pause.holds(now):
        return str(pause)
    if hindrance := hindering(job, hindrances):
        return hindrance.what
    others = [other for other in jobs if other.id != job.id]
    before = sum(is_ready(other, now, hindrances) and order(other) < order(job) for other in others)
    active = active_of(others)
    ahead = [f"{active.id} is {active.state}"] if active else []
    if before:
        ahead.append("one job goes before it" if before == 1 else f"{before} jobs go before it")
    return " and ".join(ahead) or "nothing: it starts as soon as the daemon can start it"
