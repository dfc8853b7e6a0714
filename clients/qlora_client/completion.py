"""What a shell completes: ids of jobs from the names of their folders, and names of events."""

from __future__ import annotations

import os

from qlora_client.home import plain_home
from qlora_engine.job.folder import JOB_ID

MOST = 200  # more than a person reads; the newest


def job_ids(_context: object, _parameter: object, incomplete: str) -> list[str]:
    """Ids that begin with what was typed, or, if there are none, that contain it; the newest first.

    Bash puts the only one that contains it in its place; zsh and fish pass over what does not begin with it.
    """
    try:
        names = os.listdir(plain_home().runs)  # noqa: PTH208  # Path objects for 10,000 entries cost more
    except OSError:
        return []  # a shell that completes has no place for an error
    ids = sorted((name for name in names if JOB_ID.fullmatch(name)), reverse=True)
    begin = [job_id for job_id in ids if job_id.startswith(incomplete)]
    return (begin or [job_id for job_id in ids if incomplete in job_id])[:MOST]


def event_names(_context: object, _parameter: object, incomplete: str) -> list[str]:
    """Names of the vocabulary that begin with what was typed."""
    from qlora_engine.job.vocabulary import EVENTS  # noqa: PLC0415

    return [name for name in EVENTS if name.startswith(incomplete)]
