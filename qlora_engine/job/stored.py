"""Reading a model back from its file, whichever format it has, and bringing a run folder up to the formats of now."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from qlora_engine.job import durable
from qlora_engine.job.errors import RunDamaged
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.formats import RECORD, SPEC, Format, NewerFormat, Value

M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], content: bytes, form: Format, where: Path) -> tuple[M, int]:
    """The model in a file's content, and the format that the file has.

    One of the current format, as nearly all are, is read in a single pass.

    Raises:
        NewerFormat: its number, or a key that nobody here knows, shows that a newer qlorad has written it.
        ValueError: it is damaged, or too old.
    """
    try:
        return model.model_validate_json(content), form.current
    except ValidationError as error:
        value = _object(content)  # a lone surrogate in a path, which JSON can write, ends here, too
        number = form.number_of(value, where)
        if number < form.current:
            return model.model_validate(form.upgraded(value, where)), number
        if unknown := unknown_keys(error):
            raise NewerFormat.of(form.what, f"it has {unknown}, which this one does not know", where) from None
        return model.model_validate(value), number


def unknown_keys(error: ValidationError) -> str:
    """The keys that a model does not have, as a list for a person; empty if that is not what is wrong."""
    unknown = (one["loc"] for one in error.errors(include_url=False) if one["type"] == "extra_forbidden")
    found = [".".join(map(str, place)) for place in unknown]
    return ", ".join(f"`{key:.60}`" for key in found[:3])


@contextmanager
def needed(path: Path, remedy: str) -> Iterator[None]:
    """While a file is read that the run cannot do without.

    Raises:
        NewerFormat: a newer qlorad has written it.
        RunDamaged: it is not there, or not what was written.
    """
    try:
        yield
    except NewerFormat:
        raise
    except FileNotFoundError:
        raise RunDamaged(f"{path.name} of the run is missing.", where=str(path), remedy=remedy) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RunDamaged(f"{path.name} of the run is damaged.", where=str(path), remedy=remedy) from None


def migrate(run: RunFolder) -> tuple[int, int] | None:
    """Bring a run folder of an older format up to the current one. The daemon alone calls this.

    The record comes last: while it has its old number, whatever was done before a crash is found done, and the rest
    is done then.

    Returns:
        The format that the record had and the one that it has now; None where it was current.

    Raises:
        NewerFormat, ValueError: a file cannot be read; then nothing was written.
        OSError: a file cannot be written; each is as it was, or whole in the new format.
    """
    record = _object(run.state.read_bytes())
    before = RECORD.number_of(record, run.state)
    if before == RECORD.current:
        return None
    upgraded = RECORD.upgraded(record, run.state)
    spec = _object(run.spec.read_bytes())
    if SPEC.number_of(spec, run.spec) < SPEC.current:
        durable.write_json(run.spec, SPEC.upgraded(spec, run.spec))
    durable.write_json(run.state, upgraded)
    return before, RECORD.current


def _object(content: bytes) -> Value:
    value = json.loads(content)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004  # a damaged file
    return value
