"""What a shell completes: ids of jobs and models from the names of their folders, and names of events."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from qlora_client.home import plain_home
from qlora_engine.job.errors import BadSetting
from qlora_engine.job.folder import JOB_ID, NAME_AT

MOST = 100  # more than a person reads; the newest


def job_ids(incomplete: str) -> list[str]:
    """Ids of jobs and sweeps that begin with what was typed, the newest first; if there are none, names that do.

    A name is offered where it is as good as the id: no other id contains it, or no other name begins with it.
    """
    try:
        runs = plain_home().runs
        names = os.listdir(runs)  # noqa: PTH208  # Path objects for 10,000 entries cost more
    except (OSError, BadSetting):
        return []  # a shell that completes has no place for an error
    ids = sorted((name for name in names if JOB_ID.fullmatch(name)), reverse=True)
    if begin := [job_id for job_id in ids if job_id.startswith(incomplete)]:
        return [*_groups_of(runs, begin[:MOST], incomplete), *begin][:MOST]
    named = [job_id for job_id in ids if job_id[NAME_AT:].startswith(incomplete)][:MOST]
    alone = [job_id[NAME_AT:] for job_id in named if _names_one_job(job_id[NAME_AT:], ids)]
    groups = [group for group in _groups_of(runs, named) if group[NAME_AT:].startswith(incomplete)]
    return [*(group[NAME_AT:] for group in groups if _names_one_sweep(runs, group, ids)), *alone]


def _names_one_job(name: str, ids: Iterable[str]) -> bool:
    """Whether it is as good as an id, as `records.find_job` takes a part of one."""
    return 1 in (sum(name in job_id for job_id in ids), sum(job_id.startswith(name, NAME_AT) for job_id in ids))


def _groups_of(runs: Path, ids: Iterable[str], begin: str = "") -> list[str]:
    """The sweeps of these jobs that begin so, each once."""
    found = dict.fromkeys(_group_of(runs / job_id) for job_id in ids)
    return [group for group in found if group is not None and group.startswith(begin)]


def _names_one_sweep(runs: Path, group: str, ids: Iterable[str]) -> bool:
    """Whether the name in a sweep's id is in no id but those of its own jobs."""
    return all(_group_of(runs / job_id) == group for job_id in ids if group[NAME_AT:] in job_id)


def _group_of(run: Path) -> str | None:
    try:
        group = json.loads((run / "state.json").read_bytes()).get("group")
    except (OSError, ValueError, AttributeError):
        return None  # as for the list of ids
    return group if isinstance(group, str) else None


def event_names(incomplete: str) -> list[str]:
    """Names of the vocabulary that begin with what was typed."""
    from qlora_engine.job.vocabulary import EVENTS  # noqa: PLC0415

    return [name for name in EVENTS if name.startswith(incomplete)]


def models(incomplete: str) -> list[str]:
    """Models of this home that begin with what was typed; where none does, the shell offers files."""
    try:
        names = sorted(os.listdir(plain_home().models))  # noqa: PTH208  # as above
    except (OSError, BadSetting):
        return []
    return [name for name in names if not name.startswith(".") and name.startswith(incomplete)]


def known_models(incomplete: str) -> list[str]:
    """Models that can be added by name."""
    from qlora_engine.job.models import CATALOGUE  # noqa: PLC0415

    return [name for name in CATALOGUE if name.startswith(incomplete)]
