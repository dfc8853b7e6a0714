"""Values that replace a job file's own: `--set lora_parameters.rank=16`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qlora_engine.job.errors import JobRejected
from qlora_engine.job.jobfile import JobText, parse

MOST = 100  # of one submission
LONGEST = 10_000  # characters
DEEPEST = 3  # parts of a key, as deep as a job file goes
SET = "--set "  # how a place begins that is no line of a file


def applied(job: JobText, overrides: Sequence[str]) -> JobText:
    """A job file's content with other values.

    Args:
        job: as it was written.
        overrides: each `key=value`; a key of a section as `section.key`, the value as YAML would have it in a job
            file. An empty value takes the key away. Of two for one key the later counts.

    Raises:
        JobRejected: one is not of that form, or its section is none.
    """
    if len(overrides) > MOST:
        raise JobRejected(
            f"{len(overrides)} values are set; at most {MOST} can be.", remedy="Put them in the job file."
        )
    for text in overrides:
        keys, value = parsed(text)
        job = with_value(job, keys, value, place_of(text))
    return job


def place_of(text: str) -> str:
    """How errors name an override."""
    return f"{SET}{text:.80}"


def with_value(job: JobText, keys: tuple[str, ...], value: Any, where: str) -> JobText:
    """A job file's content with one other value, which is said to stand at `where`.

    Raises:
        JobRejected: its section is none.
    """
    places = {place: known for place, known in job.places.items() if place[: len(keys)] != keys}
    return replace(job, values=_with(job.values, keys, value, where), places=places | {keys: where})


def parsed(text: str) -> tuple[tuple[str, ...], Any]:
    """The key, in parts, and the value of one override. Raises `JobRejected`."""
    name, equals, value = text.partition("=")
    keys = tuple(part.strip() for part in name.split("."))
    shown = place_of(text)
    if not equals or not all(keys) or len(keys) > DEEPEST or len(text) > LONGEST:
        raise JobRejected(
            f"`{text:.80}` does not say which key has which value.",
            where=shown,
            remedy="Write key=value, for example learning_rate=2e-5 or lora_parameters.rank=16.",
        )
    try:
        (read,) = parse(f"value: {value}", "value.yaml").values.values()  # more, where a line break begins another key
    except (JobRejected, ValueError):
        raise JobRejected(
            f"The value of `{name.strip()}` is not one that YAML can read.",
            where=shown,
            remedy="Write it as in a job file; quote it where YAML means something else by it.",
        ) from None
    return keys, read


def _with(values: dict[str, Any], keys: tuple[str, ...], value: Any, where: str) -> dict[str, Any]:
    first, *rest = keys
    if not rest:
        return values | {first: value}
    section = values.get(first)
    if section is not None and not isinstance(section, dict):
        raise JobRejected(
            f"`{first}` is {section!r:.40} in the job file, so it has no `{rest[0]}`.",
            where=where,
            remedy=f"Set `{first}` itself.",
        )
    return values | {first: _with(section or {}, tuple(rest), value, where)}
