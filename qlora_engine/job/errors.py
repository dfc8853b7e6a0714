"""Every error that is raised on purpose, with its exit code (sysexits(3)) and its remedy."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class Exit(IntEnum):
    """Exit codes of every program here; the names are those of sysexits(3)."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Exit:
        """One code; `meaning` says in words when a program ends with it."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    OK = 0, "it went well"
    USAGE = 64, "the command line is wrong"
    DATAERR = 65, "the job file or its data is wrong"
    NOINPUT = 66, "a file or a model is missing"
    UNAVAILABLE = 69, "a service that is needed does not answer"
    SOFTWARE = 70, "a bug of ours, or a job that failed"
    OSERR = 71, "the system refused: memory, processes"
    CANTCREAT = 73, "an output file cannot be made"
    TEMPFAIL = 75, "stopped at a checkpoint; run again to go on"
    NOPERM = 77, "not allowed"
    CONFIG = 78, "a setting is wrong"


class QloradError(Exception):
    """Something went wrong that a person can mend.

    Args:
        what: one sentence, what is wrong.
        where: the file, line or key it concerns.
        remedy: what to do next.
    """

    exit_code: ClassVar[Exit] = Exit.SOFTWARE

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what, self.where, self.remedy = what, where, remedy

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.remedy))

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where:  {self.where}")
        if self.remedy:
            lines.append(f"  remedy: {self.remedy}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, str | int | None]:
        """The error as JSON, for events and for the processes that pass it on."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "where": self.where,
            "remedy": self.remedy,
            "exit_code": int(self.exit_code),
        }


def kind_named(name: str | None) -> type[QloradError]:
    """The class that an answer of another process names; `JobRejected` for one that is not known here."""
    kinds: list[type[QloradError]] = [QloradError]
    for kind in kinds:  # grows meanwhile
        if kind.__name__ == name:
            return kind
        kinds += kind.__subclasses__()
    return JobRejected


def _rebuild(kind: type[QloradError], what: str, where: str | None, remedy: str | None) -> QloradError:
    return kind(what, where=where, remedy=remedy)


class JobRejected(QloradError):
    """The job file is not a valid job: a key, a value, or the file itself."""

    exit_code = Exit.DATAERR


class NoJobFile(JobRejected):
    """There is no job file where one was named."""

    exit_code = Exit.NOINPUT


class DataRejected(JobRejected):
    """The training, validation or test data cannot be used."""


class DuplicateJob(JobRejected):
    """A job with the same file and the same data has not ended yet."""


class ModelRejected(JobRejected):
    """The model is missing or is not one that can be trained."""

    exit_code = Exit.NOINPUT


class ConversionRefused(QloradError):
    """A model file holds an architecture or tensor type that is not supported."""

    exit_code = Exit.DATAERR


class DownloadFailed(QloradError):
    """A model's file cannot be downloaded."""

    exit_code = Exit.UNAVAILABLE


class ModelNotAdded(QloradError):
    """A model cannot be put into the home: it exists, the disk is full, or another process adds one."""

    exit_code = Exit.CANTCREAT


class ModelNotPermitted(ModelNotAdded):
    """The folder of models may not be written."""

    exit_code = Exit.NOPERM


class GpuBusy(QloradError):
    """Another process of this user holds the GPU lock."""

    exit_code = Exit.TEMPFAIL


class AttemptOutdated(QloradError):
    """This training process belongs to an attempt that the daemon has given up."""

    exit_code = Exit.TEMPFAIL


class TrainingFailed(QloradError):
    """Training cannot go on: the numbers, the memory or the environment do not allow it."""

    exit_code = Exit.DATAERR


class OutOfMemory(TrainingFailed):
    """The job does not fit into memory, and nothing that it allows would make it fit."""


class BenchFailed(TrainingFailed):
    """A trainer ended before its speed was measured."""


class CheckpointDamaged(QloradError):
    """A checkpoint does not match its manifest."""

    exit_code = Exit.DATAERR


class RunDamaged(QloradError):
    """A file of the run folder that nothing can be done without is missing or damaged."""

    exit_code = Exit.DATAERR


class ResumeRefused(QloradError):
    """The checkpoints of this run belong to another job file or to other data."""

    exit_code = Exit.DATAERR


class DaemonUnavailable(QloradError):
    """The daemon does not run or does not answer."""

    exit_code = Exit.UNAVAILABLE


class AlreadyRunning(QloradError):
    """Another daemon serves this home."""

    exit_code = Exit.UNAVAILABLE


class NoSuchJob(QloradError):
    """No job, or more than one, has an id that contains this text."""

    exit_code = Exit.NOINPUT


class WrongState(QloradError):
    """A job's state does not allow what was asked."""

    exit_code = Exit.DATAERR


class BadSetting(QloradError):
    """An environment variable or option has a value that cannot be used."""

    exit_code = Exit.CONFIG


class SystemRefused(QloradError):
    """The operating system refused: a folder that may not be written, a disk that is full."""

    exit_code = Exit.OSERR


class ProgramFailed(QloradError):
    """A program of the operating system is missing, did not end in time, or failed."""

    exit_code = Exit.OSERR


class ServiceMissing(QloradError):
    """The daemon is not installed as a service here, or cannot be."""

    exit_code = Exit.UNAVAILABLE


class NotAllowed(QloradError):
    """Somebody else must do this."""

    exit_code = Exit.NOPERM
