"""Many jobs at a glance, read without pydantic: loading that would take longer than the reading of all of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from qlora_client.wanted import EVERY, Wanted
from qlora_engine.job.folder import JOB_ID
from qlora_engine.job.formats import RECORD, NewerFormat
from qlora_engine.job.hindrance import Hindrance, hindering, hindrances_in
from qlora_engine.job.states import State
from qlora_engine.job.when import too_early

if TYPE_CHECKING:
    from qlora_engine.job.folder import Home, RunFolder


_SECOND = len("20261122-143501")  # of an id
# The state of a sweep: the first of these that one of its jobs is in.
_OF_SWEEP = [*map(str, (State.RUNNING, State.STARTING, State.STOPPING, State.ACCEPTED, State.QUEUED, State.BLOCKED)),
             *map(str, (State.HELD, State.FAILED, State.DONE, State.CANCELLED))]  # fmt: skip
NO_JOBS = "There are no jobs yet. Make one: qlora init my-job, then: qlora submit my-job"


@dataclass(frozen=True)
class Summary:
    """What a line says of a job; `record` is all that its record holds."""

    id: str
    state: str
    reason: str
    priority: int
    step: int
    steps: int
    created: datetime
    urgent: bool
    record: dict[str, Any]
    jobs: int | None = None  # of a sweep that this line stands for

    @classmethod
    def of(
        cls,
        record: dict[str, Any],
        hindrances: Callable[[], tuple[Hindrance, ...]] = tuple,
        now: datetime | None = None,
    ) -> Summary:
        """From a record as it is stored. Raises `ValueError`, `KeyError` or `TypeError` if it is none.

        Args:
            record: as JSON has it.
            hindrances: that there are now, asked for if the job waits.
            now: the time; by default that of the clock.
        """
        return cls(
            id=str(record["id"]),
            state=str(record["state"]),
            reason=_why(record, hindrances, now or datetime.now(UTC)),
            priority=int(record["priority"]),
            step=int(record["step"]),
            steps=int(record["steps"]),
            created=datetime.fromisoformat(record["created"]),
            urgent=bool(record.get("urgent")),
            record=record,
        )


class _Wishes(NamedTuple):
    urgent: bool
    power: str | None


def _why(record: dict[str, Any], hindrances: Callable[[], tuple[Hindrance, ...]], now: datetime) -> str:
    """Why the job is where it is: of a queued one, what it waits for by the clock, or what hinders it."""
    if record["state"] == State.QUEUED:
        times = [record.get(name) for name in ("not_before", "rests_until")]
        not_before, rests_until = (datetime.fromisoformat(time) if time else None for time in times)
        if early := too_early(not_before, rests_until, now):
            return early
        wishes = _Wishes(bool(record.get("urgent")), record.get("power"))
        if hindrance := hindering(wishes, hindrances()):
            return hindrance.what
    return str(record["reason"])


@dataclass(frozen=True)
class Overview:
    """Jobs, newest first; how many there are in the home; run folders whose record cannot be read."""

    jobs: list[Summary]
    total: int
    unreadable: list[str]


def job_ids(home: Home) -> list[str]:
    """The ids of all jobs, newest first; an id begins with the time of its job."""
    try:
        names = os.listdir(home.runs)  # noqa: PTH208  # Path objects for 10,000 entries cost more than the listing
    except FileNotFoundError:
        return []
    return sorted((name for name in names if JOB_ID.fullmatch(name)), reverse=True)


def overview(home: Home, limit: int | None = None, wanted: Wanted = EVERY, *, together: bool = False) -> Overview:
    """The newest `limit` jobs that are wanted, or all of them. One that vanishes meanwhile is left out.

    Args:
        home: whose jobs.
        limit: how many at most.
        wanted: which.
        together: the jobs of a sweep count as one, and are all there.
    """
    ids = job_ids(home)
    hindrances = cache(lambda: hindrances_in(home))
    jobs: list[Summary] = []
    unreadable: list[str] = []
    lines: set[str] = set()
    second = ""  # in which the newest of the last line was accepted, as the ids of all jobs of a sweep say
    for job_id in ids:
        full = limit is not None and len(lines) == limit
        if (full and not (together and job_id.startswith(second))) or wanted.is_older(job_id):
            break
        run = home.run(job_id)
        try:
            found = summary_of(run, hindrances)
        except (OSError, ValueError, KeyError, TypeError):
            if run.path.exists():
                unreadable.append(job_id)
        else:
            line = _line_of(found) if together else found.id
            if wanted.takes(found) and (line in lines or not full):
                jobs.append(found)
                lines.add(line)
                second = job_id[:_SECOND]
    return Overview(jobs, len(ids), unreadable)


def _line_of(job: Summary) -> str:
    return str(job.record.get("group") or job.id)


def in_lines(jobs: Sequence[Summary]) -> list[Summary]:
    """The jobs with one line for each sweep, where its newest job stood."""
    found: dict[str, list[Summary]] = {}
    for job in jobs:
        found.setdefault(_line_of(job), []).append(job)
    return [members[0] if line == members[0].id else _as_one(line, members) for line, members in found.items()]


def _as_one(group: str, members: Sequence[Summary]) -> Summary:
    """The line of a sweep: in the state of the job that is furthest from its end, but for one that trains."""
    states = [job.state for job in members]
    first = next((state for state in _OF_SWEEP if state in states), states[0])
    counted = ", ".join(f"{states.count(state)} {state}" for state in [*map(str, State), "newer"] if state in states)
    known = all(job.steps for job in members)
    return Summary(
        id=group,
        state=first,
        reason=f"{len(members)} job{'s' if len(members) > 1 else ''}: {counted}",
        priority=max(job.priority for job in members),
        step=sum(job.step for job in members) if known else 0,
        steps=sum(job.steps for job in members) if known else 0,
        created=min(job.created for job in members),
        urgent=any(job.urgent for job in members),
        record=members[0].record,
        jobs=len(members),
    )


def summary_of(run: RunFolder, hindrances: Callable[[], tuple[Hindrance, ...]] = tuple) -> Summary:
    """What a line says of the job in a run folder.

    Raises:
        OSError, ValueError, KeyError, TypeError: its record cannot be read.
    """
    with open(run.state, "rb") as file:  # noqa: PTH123  # of 10,000 files
        record = json.loads(file.read())
    if not isinstance(record, dict):
        raise TypeError("it is not a JSON object")
    try:
        return Summary.of(RECORD.upgraded(record), hindrances)
    except NewerFormat:
        return _newer(run.id, record)


def _newer(job_id: str, record: dict[str, Any]) -> Summary:
    """A job of which only its id can be relied on: a newer qlorad has made it."""
    made = datetime.strptime(job_id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    why = f"made by a newer qlorad (format {record['format']}; this one reads {RECORD.current})"
    return Summary(job_id, "newer", why, 0, 0, 0, made, urgent=False, record=record)
