"""Which jobs a new job waits for, from what its file calls them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qlora_engine.job.errors import JobRejected
from qlora_engine.job.record import JobRecord


def resolve(names: Sequence[str], records: Iterable[JobRecord]) -> tuple[str, ...]:
    """The ids of the jobs that are named: by id, by a part of one that no other has, or the newest of that name.

    A job can only wait for jobs that were accepted before it, so that no two ever wait for each other.

    Raises:
        JobRejected: there is no such job, or several may be meant.
    """
    if not names:
        return ()
    known = sorted(records, key=lambda record: record.created)
    return tuple(dict.fromkeys(_resolve(name, known) for name in names))


def _resolve(name: str, known: Sequence[JobRecord]) -> str:
    exact = [record.id for record in known if record.id == name] or [r.id for r in known if r.name == name]
    if exact:
        return exact[-1]
    parts = [record.id for record in known if name.lower() in record.id]
    if len(parts) == 1:
        return parts[0]
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
