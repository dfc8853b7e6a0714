"""A sweep: lists of values in a job file, which become a group of jobs; what each of them has, and is called.

Pure: the same section gives the same jobs in the same order on every machine.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from qlora_engine.job.text import many
from qlora_engine.job.wishes import LIMIT, Section

MOST = 200  # jobs of a sweep, and values of a list
DEEPEST = 3  # parts of a key, as deep as a job file goes
KEPT = frozenset({"name", "sweep"})  # of the sweep as a whole
LONGEST_VALUE = 24  # characters of a value in a name

Settings = dict[str, Any]  # the keys that differ, dotted, each with its value in one job


def _flat(value: Any) -> Any:
    """Sections as dotted keys: what `lora_parameters: {rank: [4, 8]}`, or TOML's `lora_parameters.rank`, means."""
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for key, inner in _leaves("", value):
        if key in found:
            raise ValueError(f"`{key}` is listed twice; keep one of the two")
        found[key] = inner
    return found


def _leaves(prefix: str, value: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, dict) and name.count(".") < DEEPEST - 1:
            yield from _leaves(f"{name}.", inner)
        else:
            yield name, inner


Values = Annotated[list[Any], Field(min_length=1, max_length=MOST)]
_GRID_SCHEMA = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": {"anyOf": [{"type": "array", "minItems": 1, "maxItems": MOST}, {"type": "object"}]},
}


class Sweep(Section):
    """What a job file's `sweep` says."""

    grid: Annotated[dict[str, Values], BeforeValidator(_flat), WithJsonSchema(_GRID_SCHEMA), Field(min_length=1)] = (
        Field(description="lists of values by key, of a section as `lora_parameters.rank`: each combination is a job")
    )
    samples: Annotated[int, Field(ge=1, le=MOST)] | None = Field(
        default=None, description="so many of the combinations, drawn by `seed`; all of them when left out"
    )
    seed: Annotated[int, Field(ge=0, lt=LIMIT)] = Field(default=0, description="decides which are drawn")
    stop_worse_than: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="ends a job whose validation loss is by more than this share above the best that another had "
        "by that step: 0.1 for 10%",
    )

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        for key in self.grid:
            parts = key.split(".")
            if parts[0] in KEPT:
                raise ValueError(f"`sweep.grid` lists `{key}`, which is one for the whole sweep")
            if len(parts) > DEEPEST or not all(parts):
                raise ValueError(f"`sweep.grid` lists `{key:.80}`, which is no key of a job file")
            if inner := next((other for other in self.grid if other.startswith(f"{key}.")), None):
                raise ValueError(f"`sweep.grid` lists both `{key}` and `{inner}`, which is a part of it")
        if self.samples is None and self.combinations > MOST:
            raise ValueError(
                f"`sweep.grid` makes {_count(self.combinations)} jobs, and a sweep has at most {MOST}; shorten a list, "
                "or set `sweep.samples` to draw so many of them"
            )
        if self.samples is not None and self.samples > self.combinations:
            raise ValueError(
                f"`sweep.samples` is {self.samples}, but the grid has {many(self.combinations, 'combination')}"
            )
        return self

    @property
    def combinations(self) -> int:
        """How many jobs the whole grid makes."""
        return math.prod(map(len, self.grid.values()))

    def settings(self) -> list[Settings]:
        """What each job of the sweep has of its own, in the order in which they run.

        The whole grid with the last key changing fastest, or the draws: without repetition, and so that more samples
        of the same seed begin with the fewer.
        """
        sizes = [len(values) for values in self.grid.values()]
        if self.samples is None:
            return [self._combination(places) for places in itertools.product(*map(range, sizes))]
        draw = random.Random(self.seed)  # noqa: S311  # `random()` gives the same in every version of Python
        drawn: dict[tuple[int, ...], None] = {}
        while len(drawn) < self.samples:
            drawn[tuple(int(draw.random() * size) for size in sizes)] = None
        return [self._combination(places) for places in drawn]

    def _combination(self, places: Iterable[int]) -> Settings:
        return {key: values[place] for (key, values), place in zip(self.grid.items(), places, strict=True)}


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**9 else "more than a billion"


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Dotted keys by their last part, or whole where two have the same."""
    known = list(keys)
    last = [key.rpartition(".")[2] for key in known]
    return {key: short if last.count(short) == 1 else key for key, short in zip(known, last, strict=True)}


def label(settings: Mapping[str, Any]) -> str:
    """What a job of a sweep is called beside the sweep's own name: `learning_rate=1e-4 rank=8`."""
    short = short_keys(settings)
    return " ".join(f"{short[key]}={shown(value)}" for key, value in settings.items())


def shown(value: Any) -> str:
    """A value as short as it can be read: `1e-4`, `8`, `off`."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return _number(value)
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def _number(value: float) -> str:
    """The shortest text that reads back as this number."""
    plain = repr(value).removesuffix(".0")
    exact = (text for digits in range(17) if float(text := f"{value:.{digits}e}") == value)
    mantissa, _, exponent = next(exact, repr(value)).partition("e")
    scientific = f"{mantissa}e{int(exponent)}" if exponent else plain
    return min(plain, scientific, key=len)
