"""Reading the records of a home: disk is the truth, so this needs no daemon."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_client.listing import NO_JOBS, job_ids
from qlora_engine.job.errors import NoSuchJob, QloradError
from qlora_engine.job.folder import NAME_AT, Home, RunFolder
from qlora_engine.job.formats import NewerFormat
from qlora_engine.job.record import JobRecord

_SHOWN_CANDIDATES = 8
_READ = 1000  # records, for an error


class RecordUnreadable(QloradError):
    """A run folder's state.json is missing, damaged, or written by another version."""


@dataclass(frozen=True)
class Listing:
    """Records, newest first; how many jobs there are in all; run folders whose record cannot be read."""

    jobs: list[JobRecord]
    total: int
    unreadable: list[str]


def list_records(home: Home, limit: int | None = None) -> Listing:
    """The newest `limit` records, or all. A job that vanishes meanwhile is left out."""
    ids = job_ids(home)
    jobs: list[JobRecord] = []
    unreadable: list[str] = []
    for job_id in ids:
        if limit is not None and len(jobs) == limit:
            break
        try:
            jobs.append(load_record(home.run(job_id)))
        except NoSuchJob:
            continue
        except (RecordUnreadable, NewerFormat):
            unreadable.append(job_id)
    return Listing(jobs, len(ids), unreadable)


def load_record(run: RunFolder) -> JobRecord:
    """The record of a run folder.

    Raises:
        NoSuchJob: there is no such folder.
        NewerFormat: a newer qlorad has made it.
        RecordUnreadable: its record cannot be read.
    """
    try:
        return JobRecord.load(run.state)
    except NewerFormat:
        raise
    except (OSError, ValueError) as error:
        if not run.path.exists():
            raise NoSuchJob(
                f"There is no job {run.id} any more.",
                where=str(run.path),
                remedy="`qlora ls` shows the jobs that are there.",
            ) from None
        why = error.strerror if isinstance(error, OSError) else "it is not a record of this version"
        raise RecordUnreadable(
            f"The record of {run.id} cannot be read: {why}.",
            where=str(run.state),
            remedy="Check the file's permissions, and that client and daemon are of one version.",
        ) from None


def find_job(home: Home, id_part: str) -> RunFolder:
    """The run folder of the one job whose id is, or contains, this text.

    Of several, the one whose name begins with it: `sql` is the job sql-assistant, not that which fuses it.

    Raises:
        NoSuchJob: none, or more than one, does.
    """
    ids = job_ids(home)
    wanted = id_part.strip().lower()
    if wanted in ids:
        return home.run(wanted)
    found = [job_id for job_id in ids if wanted and wanted in job_id]
    beginning = [job_id for job_id in found if job_id[NAME_AT:].startswith(wanted)]
    for fitting in (found, beginning):
        if len(fitting) == 1:
            return home.run(fitting[0])
    if found:
        named = _named(home, wanted, found)
        if len(named) == 1:
            raise NoSuchJob(
                f"{named[0]} is a sweep of {len(found)} jobs, and one job is needed here.",
                where=str(home.runs),
                remedy=f"Name one of them: `qlora show {named[0]}` shows them, the best first.",
            )
        what = "jobs" if len(named) == len(found) else "jobs and sweeps"
        raise NoSuchJob(
            f"{len(named)} {what} have an id that contains {id_part!r:.80}: {_some(named)}.",
            where=str(home.runs),
            remedy=f"Write more of the id. For the newest of them it is enough to write {_enough(found[0], ids)}.",
        )
    remedy = f"Jobs that are there: {_some(ids)}." if ids else NO_JOBS
    raise NoSuchJob(f"No job has an id that contains {id_part!r:.80}.", where=str(home.runs), remedy=remedy)


def _named(home: Home, wanted: str, found: list[str]) -> list[str]:
    """The jobs whose ids contain the text, or in their place the sweeps whose ids do."""
    names: dict[str, None] = {}
    for job_id in found:
        try:
            group = load_record(home.run(job_id)).group if len(found) <= _READ else None
        except QloradError:
            group = None  # it has gone, or cannot be read: its id says enough
        names[group if group is not None and wanted in group else job_id] = None
    return list(names)


def _enough(job_id: str, ids: list[str]) -> str:
    """A short part of an id that no other has: its time of day, where that is enough."""
    time = job_id[9:15]
    return time if sum(time in other for other in ids) == 1 else job_id


def _some(ids: list[str]) -> str:
    shown = ", ".join(ids[:_SHOWN_CANDIDATES])
    return shown if len(ids) <= _SHOWN_CANDIDATES else f"{shown} and {len(ids) - _SHOWN_CANDIDATES} more"
