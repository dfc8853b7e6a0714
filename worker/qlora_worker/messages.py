"""What a client may ask of the daemon and what it is answered: JSON, validated on both sides."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from qlora_engine.job.cleaning import Part
from qlora_engine.job.errors import QloradError, kind_named
from qlora_engine.job.folder import JOB_ID
from qlora_engine.job.formats import REQUEST, NewerFormat
from qlora_engine.job.overrides import LONGEST as LONGEST_OVERRIDE
from qlora_engine.job.overrides import MOST
from qlora_engine.job.when import LONGEST

Kind = Literal["submit", "cancel", "hold", "release", "prioritise", "retry", "pause", "resume", "clean"]
MAX_TEXT = 300_000  # characters; a job file has less, and the examiner says so exactly
MOST_CLEANED = 500  # jobs in one request: renaming them takes the daemon a moment, and more come in the next
KEY = r"^[0-9a-f]{32}$"


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Request(_Message):
    """One request. Its key makes it idempotent: asked twice, it is done once."""

    format: int = Field(default=REQUEST.current, ge=1, le=REQUEST.current)
    key: str = Field(pattern=KEY)
    kind: Kind
    payload: dict[str, Any]


def is_newer(text: str | bytes) -> bool:
    """Whether a request that cannot be understood says that a newer client has made it."""
    try:
        REQUEST.number_of(dict(json.loads(text)))
    except NewerFormat:
        return True
    except (ValueError, TypeError, RecursionError):
        return False
    return False


class Submission(_Message):
    """`submit`: the text of a job file, its name, and the folder that its relative paths start from.

    A job that is just like one that has not ended is refused, unless it is wanted `again`. Overrides are `key=value`
    and count in place of what the file says.
    """

    text: str = Field(max_length=MAX_TEXT)
    name: str = Field(pattern=r"^[^/\x00-\x1f]{1,200}$")
    base: str = Field(pattern=r"^/[^\x00]*$")
    again: bool = False
    overrides: tuple[Annotated[str, Field(max_length=LONGEST_OVERRIDE)], ...] = Field(default=(), max_length=MOST)


class OfJob(_Message):
    """`cancel`, `hold`, `release` and `retry`: the full id of a job."""

    job: str = Field(pattern=rf"^{JOB_ID.pattern}$")


class Priority(OfJob):
    """`prioritise`: what is None stays as it is."""

    priority: int | None = Field(default=None, ge=-100, le=100)
    urgent: bool | None = None


class PauseFor(_Message):
    """`pause`: for so many seconds, or until it is resumed."""

    seconds: float | None = Field(default=None, gt=0, le=LONGEST)


class Clean(_Message):
    """`clean`: a part of jobs that have ended, by their full ids."""

    jobs: list[Annotated[str, Field(pattern=rf"^{JOB_ID.pattern}$")]] = Field(max_length=MOST_CLEANED)
    part: Part


class Nothing(_Message):
    """`resume`."""


class Answer(_Message):
    """What became of a request: done (with the job it concerns), or what is wrong."""

    ok: bool
    job: str | None = None
    what: str | None = None
    where: str | None = None
    remedy: str | None = None
    error: str | None = Field(default=None, description="the class of the error")

    @classmethod
    def done(cls, job: str | None, what: str) -> Self:
        """The request was carried out."""
        return cls(ok=True, job=job, what=what)

    @classmethod
    def refused(cls, error: QloradError) -> Self:
        """The request was not carried out."""
        return cls(ok=False, what=error.what, where=error.where, remedy=error.remedy, error=type(error).__name__)

    def raise_if_refused(self) -> None:
        """Raise the error that the daemon answered with, as the class that it named where that is known."""
        if self.ok:
            return
        raise kind_named(self.error)(self.what or "The daemon refused.", where=self.where, remedy=self.remedy)
