"""A job file's content against its keys: a job, or what is wrong with it, on which line, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from qlora_engine.job.errors import JobRejected
from qlora_engine.job.expected import expected
from qlora_engine.job.free_section import NotPlain
from qlora_engine.job.jobfile import JobText
from qlora_engine.job.overrides import SET
from qlora_engine.job.spec import AS_WRITTEN, EarlyStopping, JobSpec, LoraParameters, LrSchedule, Memory
from qlora_engine.job.sweep import Sweep
from qlora_engine.job.wishes import Wishes, shown

W = TypeVar("W", bound=Wishes)


def validate(job: JobText) -> JobSpec:
    """Turn the content of a job file into a `JobSpec`.

    Raises:
        JobRejected: an unknown key (with the nearest known one), a wrong type or value (with its line), or the file
            is a sweep of several.
    """
    return validated(JobSpec, job)


def validated(kind: type[W], job: JobText) -> W:
    """`validate` for any kind of job."""
    try:
        spec = kind.model_validate(job.values, context=AS_WRITTEN)
    except ValidationError as error:
        raise rejected(error, job, kind) from None
    if isinstance(spec, JobSpec) and spec.sweep is not None:
        raise JobRejected(
            f"{job.name} is a sweep of several jobs, and here one is expected.",
            where=job.where(("sweep",)),
            remedy="Submit it, and the daemon makes its jobs: `qlora submit`. For one job remove `sweep`.",
        )
    return spec


def rejected(error: ValidationError, job: JobText, kind: type[Wishes] | None = None) -> JobRejected:
    """The error for a job file whose content does not validate: the first problem, and others after it."""
    problems = _merged(error.errors(include_url=False))
    first, *others = [_describe(problem, job, kind or JobSpec) for problem in problems]
    what, where, remedy = first
    if others:
        what += "".join(f"\n  also:   {text} ({place})" for text, place, _ in others[:9])
    return JobRejected(what, where=where, remedy=remedy)


def _merged(problems: Iterable[Any]) -> list[Any]:
    """Problems of one value that may be of several types, as one: it is none of them."""
    merged: list[Any] = []
    for problem in problems:
        before = merged[-1] if merged else None
        may_be = problem["msg"].removeprefix("Input should be ")
        if before and may_be != problem["msg"] and _keys(before["loc"]) == _keys(problem["loc"]):
            merged[-1] = before | {"msg": f"{before['msg']} or {may_be}"}
        else:
            merged.append(problem)
    return merged


def _keys(place: Sequence[int | str]) -> tuple[str, ...]:
    """Where a value stands, without the types that pydantic has tried: `list[dict[str,any]]`, `constrained-int`."""
    return tuple(
        str(part)
        for number, part in enumerate(place)
        if number == 0 or not ("[" in str(part) or str(part).startswith("constrained-"))
    )


def _describe(problem: Any, job: JobText, kind: type[Wishes]) -> tuple[str, str, str]:
    keys = _keys(problem["loc"])
    dotted = _dotted(keys) or "the job"
    where = job.where(keys)
    match problem["type"]:
        case "extra_forbidden":
            return f"`{dotted}` is not a key of {kind.FILE}.", where, _nearest(keys, kind)
        case "value_error":
            return _of_ours(problem["ctx"]["error"], keys, job)
        case "missing":
            return _missing(keys, job)
    if keys == ("trust_remote_code",):
        return (
            "`trust_remote_code` is refused from a job file: it would run code that came with the model.",
            where,
            "Remove it, and use a model that mlx_lm supports by itself.",
        )
    if keys == ("train",):
        return "`train: false` leaves nothing to do.", where, "Remove it: a job trains."
    given = problem.get("input")
    wanted = expected(problem["msg"])
    named = next((key for key in reversed(keys) if not key.isdigit()), "the job")  # not the place in a list
    hint = ""
    if isinstance(given, str) and "number" in wanted:
        hint = " Write it without quotes or units, for example `1e-5` or `200`."
    return (
        f"`{dotted}` is {shown(given)}, but it {wanted}.",
        where,
        f"Correct the value of `{named}`.{hint}",
    )


def _missing(keys: tuple[str, ...], job: JobText) -> tuple[str, str, str]:
    """`_describe` for a key that must be there."""
    if keys != ("sweep", "grid"):
        return f"`{_dotted(keys)}` is missing.", job.where(keys), "Add it."
    if only := _only_set(job, "sweep"):
        return (
            f"`{only}` is for a sweep, and {job.name} is none.",
            job.where(tuple(only.split("."))),
            "Leave it out, or give the file a `sweep` with lists of values.",
        )
    lists = "List values by key, for example `learning_rate: [1e-5, 1e-4]`."
    return "`sweep.grid` is missing.", job.where(keys), lists


def _only_set(job: JobText, section: str) -> str | None:
    """The first key of a section of which the file has nothing: all of it was set beside it. None for any other."""
    keys = [(section, str(key)) for key in job.values[section]]
    return ".".join(keys[0]) if keys and all(job.places.get(one, "").startswith(SET) for one in keys) else None


def _dotted(keys: tuple[str, ...]) -> str:
    """A key as it is named in a sentence, short enough for one."""
    name = ".".join(keys)
    return name if len(name) <= 80 else f"{name[:77]}..."


def _of_ours(error: ValueError, keys: tuple[str, ...], job: JobText) -> tuple[str, str, str]:
    """`_describe` for an error that one of our own validators raised."""
    if isinstance(error, NotPlain):
        keys += error.keys
        return f"`{_dotted(keys)}` {error}.", job.where(keys), error.remedy
    return f"{error}.", job.where(keys), "Correct it." if keys else "Remove one of the two."


def _nearest(keys: tuple[str, ...], kind: type[Wishes]) -> str:
    sections: dict[str, type[BaseModel]] = {
        "lora_parameters": LoraParameters,
        "lr_schedule": LrSchedule,
        "memory": Memory,
        "early_stopping": EarlyStopping,
        "sweep": Sweep,
    }
    section = sections.get(keys[0], kind) if len(keys) > 1 else kind
    known = [*section.model_fields]
    if keys[-1] == "alpha" and kind is JobSpec:
        return "mlx_lm's config has `scale` (alpha divided by rank) in its place."
    near = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.6)
    if near:
        return f"Did you mean `{near[0]}`?"
    return f"Remove it. Known keys: {', '.join(sorted(known))}."
