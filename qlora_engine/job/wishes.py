"""The keys that every kind of job file has: what the job is called, its turn in the queue, who is told of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from qlora_engine.job import targets
from qlora_engine.job.when import moment_of

TARGET = rf"^{targets.NAME.pattern}$"

LIMIT = 2**63  # of whole numbers, which 64 bits hold; more have no meaning, and crash what computes with them

T = TypeVar("T")
Text = Annotated[str, Field(min_length=1)]
AnyText = Annotated[str, Field(min_length=0)]  # pydantic finds halves of characters only where there is a limit


class Section(BaseModel):
    """A part of a job file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_empty_keys(cls, value: Any) -> Any:
        # A key without a value means its default, as in mlx_lm.
        return {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else value


class Wishes(Section):
    """What any job may wish for."""

    FILE: ClassVar[str] = "a job file"  # what a person calls it

    name: Annotated[str, Field(min_length=1, max_length=80)] | None = Field(
        default=None, description="of the job; that of its file or folder when left out"
    )
    priority: Annotated[int, Field(ge=-100, le=100)] = Field(default=0, description="higher goes first")
    urgent: bool = Field(default=False, description="goes before all others; the running job stops for it")
    hold: bool = Field(default=False, description="waits for `qlora release` from the start")
    power: Literal["any", "ac"] | None = Field(
        default=None, description="on battery: run all the same, or wait for the plug; the setting when left out"
    )
    after: list[Text] = Field(default=[], max_length=100, description="jobs that must be done first: ids or names")
    not_before: Text | None = Field(default=None, description="starts at this time or later")
    retries: Annotated[int, Field(ge=0, le=20)] = Field(
        default=0, description="how often it is tried again after it crashed, stalled, or missed a service"
    )
    notify: list[Annotated[str, Field(pattern=TARGET)]] = Field(
        default=[], max_length=20, description="who is told how it ends: names of targets, never addresses"
    )

    @field_validator("after", "notify", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("not_before", mode="before")
    @classmethod
    def _as_moment(cls, value: Any) -> Any:
        return None if value is None else read_value("not_before", moment_of, value).isoformat()


def read_value(key: str, reads: Callable[[Any], T], value: Any) -> T:
    """What `reads` makes of a value. Raises `ValueError` as a sentence about the key."""
    try:
        return reads(value)
    except ValueError as error:
        raise ValueError(f"`{key}` is {shown(value)}, but it {error}") from None


def shown(value: object) -> str:
    """A value that a person wrote, short enough for a sentence."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number too long to show"
    return text if len(text) <= 60 else text[:57] + "..."
