"""Many jobs at a glance, read without pydantic: loading that would take longer than the reading of all of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
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


def overview(home: Home, limit: int | None = None, wanted: Wanted = EVERY) -> Overview:
    """The newest `limit` jobs that are wanted, or all of them. One that vanishes meanwhile is left out."""
    ids = job_ids(home)
    hindrances = cache(lambda: hindrances_in(home))
    jobs: list[Summary] = []
    unreadable: list[str] = []
    for job_id in ids:
        if (limit is not None and len(jobs) == limit) or wanted.is_older(job_id):
            break
        run = home.run(job_id)
        try:
            found = summary_of(run, hindrances)
        except (OSError, ValueError, KeyError, TypeError):
            if run.path.exists():
                unreadable.append(job_id)
        else:
            if wanted.takes(found):
                jobs.append(found)
    return Overview(jobs, len(ids), unreadable)


def summary_of(run: RunFolder, hindrances: Callable[[], tuple[Hindrance, ...]] = tuple) -> Summary:
    """What a line says of the job in a run folder.

    Raises:
        OSError, ValueError, KeyError, TypeError: its record cannot be read.
    """
    with open(run.state, "rb") as file:  # noqa: PTH123  # of 10,000 files
        record = json.loads(file.read())
    try:
        return Summary.of(RECORD.upgraded(record), hindrances)
    except NewerFormat:
        return _newer(run.id, record)


def _newer(job_id: str, record: dict[str, Any]) -> Summary:
    """A job of which only its id can be relied on: a newer qlorad has made it."""
    made = datetime.strptime(job_id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    why = f"made by a newer qlorad (format {record['format']}; this one reads {RECORD.current})"
    return Summary(job_id, "newer", why, 0, 0, 0, made, urgent=False, record=record)
