"""From a job file with a `sweep` to the jobs that it makes, each checked before any of them is taken."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from qlora_engine.job.errors import JobRejected, QloradError
from qlora_engine.job.jobfile import JobText
from qlora_engine.job.overrides import SET, with_value
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.survey import Survey
from qlora_engine.job.sweep import Settings, Sweep, label
from qlora_engine.job.validate import rejected, validate


class Member(BaseModel):
    """One job of a sweep: what it has of its own, the whole of it, and what a survey found out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: Settings  # plain JSON
    job: ResolvedJob
    survey: Survey | None = None


class ResolvedSweep(BaseModel):
    """The jobs of a sweep, in the order in which they run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    members: tuple[Member, ...]
    stop_worse_than: float | None = None


class Draft(NamedTuple):
    """One job of a sweep as a job file of its own would say it."""

    settings: Settings
    text: JobText


class _File(BaseModel):
    """The part of a job file that makes it a sweep."""

    model_config = ConfigDict(extra="ignore")

    sweep: Sweep


def sweep_of(job: JobText) -> Sweep | None:
    """The file's `sweep`; None for a job like any other.

    Raises:
        JobRejected: it is not a valid one.
    """
    if job.values.get("sweep") is None:
        return None
    try:
        return _File.model_validate(job.values).sweep
    except ValidationError as error:
        raise rejected(error, job) from None


def drafts(job: JobText, sweep: Sweep) -> list[Draft]:
    """The job file of each job of the sweep. Every value of every list is checked, drawn or not.

    Raises:
        JobRejected: a value is wrong (with its key and line), stands twice, or does not go with others.
    """
    base = replace(job, values={key: value for key, value in job.values.items() if key != "sweep"})
    places = {key: _place(job, key) for key in sweep.grid}
    for key, values in sweep.grid.items():
        _check_not_set(job, key)
        _check_values(base, sweep, key, values, places)
    found = []
    for settings in sweep.settings():
        text = _text(base, settings, places)
        with saying_which(settings):
            spec = validate(text)
        found.append(Draft(_as_read(spec, settings), text))
    return found


@contextlib.contextmanager
def saying_which(settings: Mapping[str, Any]) -> Iterator[None]:
    """An error of one job of a sweep says which it is."""
    try:
        yield
    except QloradError as error:
        error.what = f"With {label(settings)}: {error.what}"
        raise


def _check_not_set(job: JobText, key: str) -> None:
    """Raise `JobRejected` if a value on the command line would count for nothing beside the list for `key`."""
    listed = tuple(key.split("."))
    for keys, where in job.places.items():
        if not where.startswith(SET):
            continue
        if keys[: len(listed)] == listed or (listed[: len(keys)] == keys and _holds(job.values, listed)):
            name = ".".join(keys if len(keys) > len(listed) else listed)
            raise JobRejected(
                f"`{name}` is set, and the sweep lists values for {'it' if name == key else f'`{key}`'}.",
                where=where,
                remedy=f"Set the list: --set 'sweep.grid={{{key}: [...]}}' replaces all of them.",
            )


def _holds(values: Any, keys: Sequence[str]) -> bool:
    for part in keys:
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _check_values(base: JobText, sweep: Sweep, key: str, values: list[Any], places: dict[str, str]) -> None:
    first = {other: listed[0] for other, listed in sweep.grid.items()}
    known: dict[str, Any] = {}
    for value in values:
        same = validate(_text(base, first | {key: value}, places)).model_dump_json()
        if same in known:
            raise JobRejected(
                f"`sweep.grid.{key}` lists {known[same]!r:.40} and {value!r:.40}, which are the same.",
                where=places[key],
                remedy="Remove one of them: equal jobs learn equal adapters.",
            )
        known[same] = value


def _text(base: JobText, settings: Mapping[str, Any], places: Mapping[str, str]) -> JobText:
    for key, value in settings.items():
        base = with_value(base, tuple(key.split(".")), value, places[key])
    return base


def _place(job: JobText, key: str) -> str:
    """Where the list stands, written as one dotted key or in sections."""
    return job.places.get(("sweep", "grid", key)) or job.where(("sweep", "grid", *key.split(".")))


def _as_read(spec: JobSpec, settings: Settings) -> Settings:
    """The values as the job has them, in JSON: `on` where YAML made that a truth value. Lists, sections as written."""
    values, found = spec.model_dump(mode="json"), {}
    for key, written in settings.items():
        value: Any = values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        found[key] = written if isinstance(value, dict | list) else value
    return dict(json.loads(json.dumps(found, default=str)))
