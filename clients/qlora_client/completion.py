"""What a shell completes: ids of jobs from the names of their folders, and names of events."""

from __future__ import annotations

import os

from qlora_client.home import plain_home
from qlora_engine.job.folder import JOB_ID, NAME_AT

MOST = 100  # more than a person reads; the newest


def job_ids(incomplete: str) -> list[str]:
    """Ids that begin with what was typed, the newest first; if there are none, names of jobs that do.

    A name is offered where it is as good as the id: no other id contains it, or no other name begins with it.
    """
    try:
        names = os.listdir(plain_home().runs)  # noqa: PTH208  # Path objects for 10,000 entries cost more
    except OSError:
        return []  # a shell that completes has no place for an error
    ids = sorted((name for name in names if JOB_ID.fullmatch(name)), reverse=True)
    if begin := [job_id for job_id in ids if job_id.startswith(incomplete)]:
        return begin[:MOST]
    named = [job_id[NAME_AT:] for job_id in ids if job_id[NAME_AT:].startswith(incomplete)]
    # As `records.find_job` takes a part of an id.
    return [
        name
        for name in named[:MOST]
        if 1 in (sum(name in job_id for job_id in ids), sum(job_id.startswith(name, NAME_AT) for job_id in ids))
    ]


def event_names(incomplete: str) -> list[str]:
    """Names of the vocabulary that begin with what was typed."""
    from qlora_engine.job.vocabulary import EVENTS  # noqa: PLC0415

    return [name for name in EVENTS if name.startswith(incomplete)]
