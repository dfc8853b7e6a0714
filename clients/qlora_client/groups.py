"""A sweep: its jobs, ranked by their validation losses, read from the files alone."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from qlora_client.listing import job_ids
from qlora_client.records import load_record
from qlora_engine.job.errors import NoSuchJob
from qlora_engine.job.folder import Home
from qlora_engine.job.record import JobRecord, is_one_sweep
from qlora_engine.job.states import State
from qlora_engine.job.sweep import MOST, label
from qlora_engine.job.validations import Losses, best_of, validations_of


@dataclass(frozen=True)
class Member:
    """One job of a sweep.

    Attributes:
        job: its record; `settings` is what it has of its own.
        validations: losses by step, nats; infinite where one was no number.
    """

    job: JobRecord
    validations: Losses = field(default_factory=dict)

    @property
    def best(self) -> tuple[float, int] | None:
        """The lowest validation loss after training began, and its step."""
        return best_of(self.validations)

    @property
    def last(self) -> tuple[float, int] | None:
        """The newest validation loss after training began, and its step."""
        step = max(self.validations, default=0)
        return (self.validations[step], step) if step > 0 else None

    @property
    def label(self) -> str:
        """Its own settings: `learning_rate=1e-4 rank=8`."""
        return label(self.job.settings)


@dataclass(frozen=True)
class Group:
    """A sweep; its jobs are ranked, the best first."""

    id: str
    members: tuple[Member, ...]

    @property
    def best(self) -> Member | None:
        """The job with the lowest validation loss, if any has one."""
        return self.members[0] if self.members and self.members[0].best else None

    @property
    def keys(self) -> tuple[str, ...]:
        """What differs, as dotted keys."""
        return tuple(self.members[0].job.settings) if self.members else ()

    @property
    def is_final(self) -> bool:
        """Every job has ended."""
        return all(member.job.is_final for member in self.members)

    @property
    def states(self) -> dict[State, int]:
        """How many jobs are in which state, in the order of a job's life."""
        found = [member.job.state for member in self.members]
        return {state: found.count(state) for state in State if state in found}


def ranked(members: Iterable[Member]) -> tuple[Member, ...]:
    """By the lowest validation loss; those without one last, in the order in which they run."""
    return tuple(sorted(members, key=lambda one: (one.best or (math.inf, 0), one.job.created, one.job.id)))


def find_group(home: Home, id_part: str) -> Group | None:
    """The sweep that has this id, or whose id alone contains this text; None where that names a job, or several.

    A job goes before a sweep: an id that is both a job's and a part of a sweep's is the job's.
    """
    wanted = id_part.strip().lower()
    found = [job_id for job_id in job_ids(home) if wanted and wanted in job_id]  # a sweep's id begins those of its jobs
    if wanted in found or len(found) > 2 * MOST:
        return None
    records = _records(home, found)
    if not records:
        return None
    if whole := [record for record in records if record.group == wanted]:
        records = whole
    elif len(records) == 1 or not is_one_sweep(wanted, records):
        return None
    group = str(records[0].group)
    return Group(group, ranked(Member(record, validations_of(home.run(record.id))) for record in records))


def _records(home: Home, found: Iterable[str]) -> list[JobRecord]:
    records = []
    for job_id in found:
        with contextlib.suppress(NoSuchJob):  # it has just been cleaned away
            records.append(load_record(home.run(job_id)))
    return records


def as_json(group: Group) -> dict[str, Any]:
    """For machines; a loss that was no number is None."""
    return {"group": group.id, "states": {str(state): count for state, count in group.states.items()},
            "jobs": [_member_as_json(rank, member) for rank, member in enumerate(group.members, 1)]}  # fmt: skip


def _member_as_json(rank: int, member: Member) -> dict[str, Any]:
    best, last, job = member.best, member.last, member.job
    return {
        "rank": rank if best else None,
        "id": job.id,
        "name": job.name,
        "settings": job.settings,
        "state": str(job.state),
        "reason": job.reason,
        "step": job.step,
        "steps": job.steps,
        "best_loss": best[0] if best else None,
        "best_step": best[1] if best else None,
        "last_loss": last[0] if last and math.isfinite(last[0]) else None,
        "last_step": last[1] if last else None,
        "outdone_by": job.outdone_by,
    }
