"""What a shell completes: ids of jobs and models from the names of their folders, and names of events."""

from __future__ import annotations

import os

from qlora_client.home import plain_home
from qlora_engine.job.folder import JOB_ID

MOST = 100  # more than a person reads; the newest
_TIME = len("20261122-143501-")  # of an id, before the job's name


def job_ids(incomplete: str) -> list[str]:
    """Ids that begin with what was typed, the newest first; if there are none, names of jobs that do.

    A name is offered where no other id contains it, since it is then as good as the id.
    """
    try:
        names = os.listdir(plain_home().runs)  # noqa: PTH208  # Path objects for 10,000 entries cost more
    except OSError:
        return []  # a shell that completes has no place for an error
    ids = sorted((name for name in names if JOB_ID.fullmatch(name)), reverse=True)
    if begin := [job_id for job_id in ids if job_id.startswith(incomplete)]:
        return begin[:MOST]
    named = [job_id[_TIME:] for job_id in ids if job_id[_TIME:].startswith(incomplete)]
    return [name for name in named[:MOST] if sum(name in job_id for job_id in ids) == 1]


def event_names(incomplete: str) -> list[str]:
    """Names of the vocabulary that begin with what was typed."""
    from qlora_engine.job.vocabulary import EVENTS  # noqa: PLC0415

    return [name for name in EVENTS if name.startswith(incomplete)]


def models(incomplete: str) -> list[str]:
    """Models of this home that begin with what was typed; where none does, the shell offers files."""
    try:
        names = sorted(os.listdir(plain_home().models))  # noqa: PTH208  # as above
    except OSError:
        return []
    return [name for name in names if not name.startswith(".") and name.startswith(incomplete)]


def known_models(incomplete: str) -> list[str]:
    """Models that can be added by name."""
    from qlora_engine.job.models import CATALOGUE  # noqa: PLC0415

    return [name for name in CATALOGUE if name.startswith(incomplete)]
