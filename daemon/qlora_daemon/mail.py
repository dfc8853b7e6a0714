"""What feeders tell the owner thread. They post messages and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qlora_daemon.settling import Found
from qlora_daemon.surroundings import Reading
from qlora_engine.job.errors import QloradError
from qlora_engine.job.members import ResolvedSweep
from qlora_engine.job.resolved import AnyResolved
from qlora_engine.job.survey import Survey
from qlora_worker.requests import Received


@dataclass(frozen=True)
class SignalCame:
    """A signal reached the daemon. SIGCHLD only says: look at the children."""

    number: int


@dataclass(frozen=True)
class FileSettled:
    """Something in the watched folder has come to rest; `problem` if it cannot be a job."""

    found: Found
    problem: QloradError | None = None


@dataclass(frozen=True)
class FolderWatched:
    """The watched folder is watched, or cannot be for a reason."""

    lost: str | None = None


@dataclass(frozen=True)
class Examined:
    """The examiner's verdict on a claim, and what it found out about a job that it accepts."""

    key: str
    verdict: AnyResolved | ResolvedSweep | QloradError
    survey: Survey | None = None


@dataclass(frozen=True)
class Asked:
    """A client's request."""

    received: Received


@dataclass(frozen=True)
class QueueFailed:
    """Redis does not answer."""

    reason: str


@dataclass(frozen=True)
class UpkeepFailed:
    """Something that keeps the home in order could not be done."""

    doing: str
    reason: str


@dataclass(frozen=True)
class RejectedTrimmed:
    """So many of the oldest names in `rejected/` were deleted; so many rejections stay."""

    count: int
    kept: int


@dataclass(frozen=True)
class MessageEnded:
    """A message about a job went to these, or did not for this reason."""

    job: str
    kind: str
    to: tuple[str, ...]
    why_not: str = ""


@dataclass(frozen=True)
class ChildPrinted:
    """A line from a child process."""

    child: str
    line: str


@dataclass(frozen=True)
class Looked:
    """What a look at power, heat and memory has shown."""

    reading: Reading


Message = (
    SignalCame
    | FileSettled
    | FolderWatched
    | Examined
    | Asked
    | QueueFailed
    | ChildPrinted
    | Looked
    | UpkeepFailed
    | RejectedTrimmed
    | MessageEnded
)
Post = Callable[[Message], None]
