"""What may be cleaned away: a decision from records and from what the jobs that go on name. Nothing is touched here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

from qlora_engine.job.folder import JOB_ID, Home, RunFolder
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State


class Part(StrEnum):
    """How much of a job goes."""

    RUN = "run"  # its run folder, and what was dropped in the watched folder for it
    CHECKPOINTS = "checkpoints"  # the result, the record and the report stay


@dataclass(frozen=True)
class Wish:
    """What a person wants to be rid of.

    Attributes:
        keep: so many jobs that ended last stay; None for no such rule.
        older: only what ended longer ago goes; None for no such rule.
    """

    part: Part
    keep: int | None = None
    older: timedelta | None = None


@dataclass(frozen=True)
class Plan:
    """The jobs of which something goes, oldest end first, and why others that were meant stay."""

    jobs: tuple[str, ...]
    kept: Mapping[str, str] = field(default_factory=dict)


def plan(jobs: Iterable[JobRecord], wish: Wish, named: Mapping[str, str], now: datetime) -> Plan:
    """Which jobs a wish concerns, and which of those stay all the same.

    Args:
        jobs: all that can be read.
        wish: both of its rules must hold for a job to go.
        named: see `named_by_others`.
    """
    ended = sorted((job for job in jobs if job.is_final), key=_end, reverse=True)
    beyond = ended if wish.keep is None else ended[wish.keep :]
    meant = [job for job in beyond if wish.older is None or now - _end(job) > wish.older]
    kept = {job.id: why for job in meant if (why := why_it_stays(job, wish.part, named)) is not None}
    return Plan(tuple(job.id for job in reversed(meant) if job.id not in kept), kept)


def why_it_stays(job: JobRecord, part: Part, named: Mapping[str, str]) -> str | None:
    """Why nothing of a job may go, for a person; None if it may."""
    if not job.is_final:
        return f"it is {job.state}"
    for known in (job.id, job.group):  # what was dropped for a sweep lies under the sweep's id
        if known is not None and known in named:
            return f"{named[known]} needs it"
    if part is Part.CHECKPOINTS and job.state is not State.DONE:
        how = "failed" if job.state is State.FAILED else "was cancelled"
        return f"it {how}, and `qlora retry` would go on from them"
    return None


def named_by_others(home: Home, jobs: Iterable[JobRecord], unreadable: Iterable[str] = ()) -> dict[str, str]:
    """Jobs that others need, each with one that does.

    A job that has not ended needs those that it comes after, and whichever its resolved file names in any path:
    adapters to start from, a model, data. Of a run folder that cannot be read, a newer one say, every id in it counts.
    """
    found: dict[str, str] = {}
    for job in jobs:
        if not job.is_final:
            for other in (*job.after, *_ids_in(home.run(job.id), ("spec.json",))):
                if other != job.group:  # its own data, which goes with the last job of its sweep
                    found.setdefault(other, job.id)
    for name in unreadable:
        for other in _ids_in(home.run(name), ("spec.json", "state.json")):
            found.setdefault(other, name)
    return {other: job for other, job in found.items() if other != job}


def _ids_in(run: RunFolder, files: Sequence[str]) -> list[str]:
    text = "".join((run.path / name).read_text(errors="replace") for name in files if (run.path / name).exists())
    return JOB_ID.findall(text)


def unused_models(home: Home, runs: Iterable[str], models: Iterable[str]) -> list[str]:
    """The models of a home that none of these runs was made with.

    Raises:
        OSError, ValueError, RuntimeError: a run does not say, so that nothing can be said of any model.
    """
    named: set[str] = set()
    for name in runs:
        resolved = json.loads(home.run(name).spec.read_bytes())
        spec = resolved["spec"]
        texts = (resolved.get("model_path"), resolved.get("model"), spec.get("model"), spec.get("add_as"))
        named |= {str(text) for text in texts if text}
    paths = (path for text in named if (path := Path(text).expanduser()).is_absolute())
    used = {place for path in paths for way in _ways(path) for place in (way, *way.parents)}
    return sorted(model for model in models if model not in named and used.isdisjoint(_ways(home.models / model)))


def _ways(path: Path) -> set[Path]:
    """A path as given and resolved: a job has the model's path resolved, and a home may be, or hold, a link."""
    return {path, path.resolve()}


def _end(job: JobRecord) -> datetime:
    return job.ended or job.changed
