"""Which jobs a new job waits for, from what its file calls them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qlora_engine.job.errors import JobRejected
from qlora_engine.job.record import JobRecord, is_one_sweep


def resolve(names: Sequence[str], records: Iterable[JobRecord]) -> tuple[str, ...]:
    """The ids of the jobs that are named: by id, by a part of one that no other has, or the newest of that name.

    A sweep, by its id or a part of it, stands for all of its jobs.

    A job can only wait for jobs that were accepted before it, so that no two ever wait for each other.

    Raises:
        JobRejected: there is no such job, or several may be meant.
    """
    if not names:
        return ()
    known = sorted(records, key=lambda record: record.created)
    return tuple(dict.fromkeys(job_id for name in names for job_id in _resolve(name, known)))


def _resolve(name: str, known: Sequence[JobRecord]) -> list[str]:
    exact = [record.id for record in known if record.id == name] or [r.id for r in known if r.name == name]
    if exact:
        return exact[-1:]
    found = [record for record in known if name.lower() in record.id]
    parts = [record.id for record in found]
    if len(parts) == 1 or is_one_sweep(name, found):
        return parts
    if parts:
        raise JobRejected(
            f"`after` names {name!r:.90}, and {len(parts)} jobs have an id that contains it.",
            where="after",
            remedy=f"Write the whole id: {', '.join(parts[-3:])}.",
        )
    raise JobRejected(
        f"`after` names {name!r:.90}, and there is no such job.",
        where="after",
        remedy="Give the id or name of a job that was accepted before this one (`qlora ls`); submit it first.",
    )
