"""Which jobs a job file means, from what it calls them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qlora_engine.job.errors import JobRejected
from qlora_engine.job.folder import NAME_AT
from qlora_engine.job.record import JobRecord, is_one_sweep


def resolve(key: str, names: Sequence[str], records: Iterable[JobRecord]) -> tuple[str, ...]:
    """The ids of the jobs that are named: by id, by the newest of that name, or by a part of an id.

    The part must be of one id alone, or the name in one id alone must begin with it. A sweep, by its id or a part of
    it, stands for all of its jobs.

    A job can only name jobs that were accepted before it, so that no two ever wait for each other.

    Args:
        key: of the job file, for errors.
        names: its value.
        records: of all jobs that may be meant.

    Raises:
        JobRejected: there is no such job, or several may be meant.
    """
    if not names:
        return ()
    known = sorted(records, key=lambda record: record.created)
    return tuple(dict.fromkeys(job_id for name in names for job_id in _resolve(key, name, known)))


def _resolve(key: str, name: str, known: Sequence[JobRecord]) -> list[str]:
    exact = [record.id for record in known if record.id == name] or [r.id for r in known if r.name == name]
    if exact:
        return exact[-1:]
    found = [record for record in known if name.lower() in record.id]
    parts = [record.id for record in found]
    if is_one_sweep(name, found):
        return parts
    beginning = [job_id for job_id in parts if job_id.startswith(name.lower(), NAME_AT)]
    for fitting in (parts, beginning):
        if len(fitting) == 1:
            return fitting
    if parts:
        raise JobRejected(
            f"`{key}` names {name!r:.90}, and {len(parts)} jobs have an id that contains it.",
            where=key,
            remedy=f"Write the whole id: {', '.join(parts[-3:])}.",
        )
    raise JobRejected(
        f"`{key}` names {name!r:.90}, and there is no such job.",
        where=key,
        remedy="Give the id or name of a job that was accepted before this one (`qlora ls`); submit it first.",
    )
