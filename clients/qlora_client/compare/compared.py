"""Jobs side by side: the settings in which they differ, and their losses; read from their run folders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

from qlora_client.feed import RunFeed, feed_of
from qlora_client.wanted import BadFilter

if TYPE_CHECKING:
    from qlora_client.api import Client
    from qlora_client.curve import Point

MOST = 8  # curves that a person can tell apart
# What differs between any two jobs, or says nothing of what is trained.
_OF_NO_ACCOUNT = frozenset({"name", "data", "adapter_path", "config", "train", "after", "not_before", "project_name"})


@dataclass(frozen=True)
class Compared:
    """One of the jobs.

    Attributes:
        letter: that stands for it where its id is too long.
        settings: by dotted key.
        losses, validations: nats over micro-batches.
        results: by name, in the order in which they are shown; None where it is not known (yet).
    """

    letter: str
    id: str
    name: str
    state: str
    settings: Mapping[str, Any]
    losses: Sequence[Point]
    validations: Sequence[Point]
    results: Mapping[str, float | int | None]


def compare(client: Client, id_parts: Sequence[str]) -> list[Compared]:
    """The jobs that are named, in that order.

    Raises:
        BadFilter: fewer than two are named, or too many.
        NoSuchJob: a name fits none, or more than one.
        OSError: a run folder cannot be read.
    """
    runs = {run.id: run for run in map(client.run, id_parts)}
    if not 2 <= len(runs) <= MOST:
        raise BadFilter(
            "One job alone cannot be compared." if len(runs) == 1 else f"{len(runs)} jobs are too many to compare.",
            where="the ids of the command line",
            remedy=f"Name two different ones, and {MOST} at most; `qlora ls` shows their ids.",
        )
    found = []
    for letter, run in zip(ascii_lowercase, runs.values(), strict=False):
        record, feed = client.job(run.id), feed_of(run)
        found.append(
            Compared(
                letter=letter,
                id=run.id,
                name=record.name,
                state=record.state,
                settings=_settings(run.spec.read_bytes()) if run.spec.exists() else {},
                losses=feed.losses.points(),
                validations=feed.validations.points(),
                results=_results(feed, record.started, record.ended, record.step),
            )
        )
    return found


def differing(jobs: Sequence[Compared]) -> dict[str, list[Any]]:
    """By key, the values of each job, for the settings that are not the same in all of them; sorted by key."""
    keys = sorted({key for job in jobs for key in job.settings} - _OF_NO_ACCOUNT)
    values = {key: [job.settings.get(key) for job in jobs] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def best(jobs: Sequence[Compared]) -> Compared | None:
    """The one with the lowest validation loss; None where none, or only one, has been validated."""
    validated = [(loss, job) for job in jobs if (loss := job.results["best validation"]) is not None]
    return min(validated, key=lambda one: one[0])[1] if len(validated) > 1 else None


def _settings(content: bytes) -> dict[str, Any]:
    try:
        stored = json.loads(content)
        data = {f"data.{split}": _data(file) for split, file in stored.get("data", {}).items()}
        return _that_count(dict(_flat(stored["spec"]))) | data
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # of a newer version, or damaged: its losses can be compared nevertheless


def _that_count(settings: dict[str, Any]) -> dict[str, Any]:
    """Without `iters`, which has its default, where `epochs` decides how long a job is."""
    return settings if settings.get("epochs") is None else settings | {"iters": None}


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, found in value.items():
        if isinstance(found, dict) and found:
            yield from _flat(found, f"{before}{key}.")
        else:
            yield f"{before}{key}", found


def _data(file: Mapping[str, Any]) -> str:
    rows = file.get("rows")
    return f"{rows} row{'' if rows == 1 else 's'}, {str(file.get('sha256'))[:8]}"


def _results(
    feed: RunFeed, started: datetime | None, ended: datetime | None, step: int
) -> dict[str, float | int | None]:
    losses = [point.loss for point in feed.validations.points()]
    now = feed.progress
    return {
        "steps": max(step, now.step),
        "first validation": losses[0] if losses else None,
        "best validation": min(losses, default=None),
        "last validation": losses[-1] if losses else None,
        "last loss": now.loss,
        "tokens/s": now.tokens_per_second,
        "peak GB": now.peak_gb,
        "seconds": (ended - started).total_seconds() if started and ended else None,
    }


def as_json(jobs: Sequence[Compared]) -> dict[str, Any]:
    """For programs: curves as columns."""

    def columns(points: Sequence[Point]) -> dict[str, list[float]]:
        return {"step": [point.step for point in points], "loss": [point.loss for point in points]}

    winner = best(jobs)
    return {
        "jobs": [
            {
                "id": job.id,
                "name": job.name,
                "state": job.state,
                "results": dict(job.results),
                "losses": columns(job.losses),
                "validations": columns(job.validations),
            }
            for job in jobs
        ],
        "differ": differing(jobs),
        "best": winner.id if winner else None,
    }
