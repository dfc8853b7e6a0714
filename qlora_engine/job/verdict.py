"""What a process that examines job files is asked and answers, a line of JSON each."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict

from qlora_engine.job.errors import QloradError, kind_named
from qlora_engine.job.members import ResolvedSweep
from qlora_engine.job.resolved import AnyResolved
from qlora_engine.job.survey import Survey


class ExamineRequest(BaseModel):
    """What to examine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_file: str
    text: str | None = None  # what it holds, if it is not to be read; only its name counts then
    home: str
    base: str | None = None  # the folder that relative paths start from; None forbids them
    shown_as: str  # what the user calls the file
    overrides: tuple[str, ...] = ()  # `key=value` in place of what the file says
    measure: str | None = None  # the GPU lock: a survey may time the device while it is free


class Verdict(BaseModel):
    """The outcome: a resolved job with what a survey found out, the jobs of a sweep, or what is wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: AnyResolved | None = None
    survey: Survey | None = None
    sweep: ResolvedSweep | None = None
    exit_code: int = 0
    error: str | None = None  # the class of what is wrong
    what: str | None = None
    where: str | None = None
    remedy: str | None = None

    @property
    def accepts(self) -> bool:
        """Nothing is wrong."""
        return self.job is not None or self.sweep is not None

    @classmethod
    def of(cls, found: AnyResolved | ResolvedSweep, survey: Survey | None = None) -> Self:
        """What was asked for, examined; of a sweep each job has its own survey."""
        return cls(sweep=found) if isinstance(found, ResolvedSweep) else cls(job=found, survey=survey)

    @classmethod
    def against(cls, error: QloradError) -> Self:
        """A rejection."""
        return cls(
            error=type(error).__name__,
            what=error.what,
            where=error.where,
            remedy=error.remedy,
            exit_code=int(error.exit_code),
        )

    def as_error(self) -> QloradError:
        """What is wrong, of the class that it had where it was found."""
        return kind_named(self.error)(self.what or "It is not a job.", where=self.where, remedy=self.remedy)


M = TypeVar("M", ExamineRequest, Verdict)


def answer_requests(verdict_on: Callable[[ExamineRequest], Verdict]) -> int:
    """Read a request a line, print its verdict; 0 in any case, since a rejection is an answer."""
    for line in sys.stdin.buffer:
        verdict = verdict_on(read_line(ExamineRequest, line))
        sys.stdout.write(as_line(verdict))
        sys.stdout.flush()
    return 0


def as_line(message: ExamineRequest | Verdict) -> str:
    """A message as one line of ASCII. A file name that is not UTF-8 survives it, which pydantic's own JSON refuses."""
    return json.dumps(message.model_dump()) + "\n"


def read_line(kind: type[M], line: bytes) -> M:
    """A message from its line. Raises `ValueError` if it is none."""
    return kind.model_validate(json.loads(line))
