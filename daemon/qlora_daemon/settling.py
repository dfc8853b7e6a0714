"""Whether something in the watched folder is a job that has come to rest: decisions over what was seen."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from qlora_engine.job.errors import JobRejected
from qlora_engine.job.jobfile import SUFFIXES
from qlora_worker.letters import is_letter

OTHER_SECONDS = 10.0  # before something that is no job file, or is empty, is turned away
MAX_ENTRIES = 20_000  # looked at in one dropped folder
OURS = frozenset({"accepted", "rejected"})
JOB_NAMES = tuple(f"job{suffix}" for suffix in SUFFIXES)

# Names that programs use while they work: vim's probe (4913) and swap files, backups, downloads, cloud stubs.
_PASSING = re.compile(
    r"^\.|~$|^4913$|\.sw[a-z]$|\.(icloud|crdownload|part|partial|download|tmp[^.]*)$|^#.*#$", re.IGNORECASE
)


class Kind(Enum):
    """What kind of thing lies there."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "symbolic link"
    OTHER = "special file"
    CLOSED = "unreadable folder"


@dataclass(frozen=True)
class Found:
    """One entry of the watched folder as it was seen once."""

    path: Path
    kind: Kind
    size: int
    fingerprint: int  # of size, time and inode of everything in it
    job_file: str | None = None  # the name of the job file in a folder

    @property
    def name(self) -> str:
        """Its name in the watched folder."""
        return self.path.name


class Decision(Enum):
    """What to do with an entry now."""

    LEAVE = "not for us"
    WAIT = "may still change"
    TAKE = "a job at rest"
    REJECT = "at rest, and no job"


def is_passing(name: str) -> bool:
    """Whether a name is ours, hidden, or one that a program uses while it works."""
    return name in OURS or bool(_PASSING.search(name))


def decide(found: Found, *, quiet: float, written: bool, settle: float) -> Decision:
    """What to do with an entry.

    Args:
        found: what lies there.
        quiet: seconds since it last changed.
        written: a process has it open for writing.
        settle: seconds of quiet that make it settled.
    """
    if is_passing(found.name) or (found.kind is Kind.FOLDER and found.job_file is None):
        return Decision.LEAVE
    if _problem(found) is None:
        return Decision.TAKE if quiet >= settle and not written else Decision.WAIT
    patience = settle if found.kind is Kind.LINK else max(settle, OTHER_SECONDS)
    return Decision.REJECT if quiet >= patience and not written else Decision.WAIT


def problem_of(found: Found) -> JobRejected:
    """Why an entry for which `decide` says REJECT is no job."""
    what, remedy = _problem(found) or ("It is not a job.", "Drop a job file.")
    return JobRejected(what, where=found.name, remedy=remedy)


def _problem(found: Found) -> tuple[str, str] | None:
    """What is wrong with an entry, and the remedy."""
    name = found.name
    match found.kind:
        case Kind.FOLDER:
            return None
        case Kind.FILE:
            return _problem_of_file(name, found.size)
        case Kind.LINK:
            return f"{name} is a symbolic link.", "Copy the file or folder itself here."
        case Kind.CLOSED:
            return f"{name} cannot be read.", f"Give yourself access to it: chmod -R u+rwX {name}"
        case Kind.OTHER:
            return f"{name} is not a regular file.", "Drop a plain text file, or a folder with a job.yaml."


def _problem_of_file(name: str, size: int) -> tuple[str, str] | None:
    suffix = Path(name).suffix
    if suffix.lower() not in SUFFIXES and not is_letter(name):
        ending = f"ends in `{suffix}`" if suffix else "has no ending"
        return (
            f"{name} is not a job file: its name {ending}.",
            "Give it a name that ends in .yaml, .yml, .json or .toml. Data belongs in a folder with its job.yaml.",
        )
    if size == 0:
        return f"{name} is empty.", "Write the job into it: `model`, `data` and `iters` are a good start."
    return None


def look(path: Path) -> Found | None:
    """See one entry as it is now; None if it has gone, or a part of it went while looking."""
    try:
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            return _look_into(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        return Found(path, Kind.CLOSED, 0, 0)
    kind = Kind.FILE if stat.S_ISREG(status.st_mode) else Kind.OTHER
    return Found(path, Kind.LINK if stat.S_ISLNK(status.st_mode) else kind, status.st_size, _mark(status))


def _look_into(folder: Path) -> Found:
    job_file = next((name for name in JOB_NAMES if os.path.lexists(folder / name)), None)
    if job_file is None:
        return Found(folder, Kind.FOLDER, 0, 0)
    marks = sorted((str(inner), _mark(inner.lstat())) for inner in files_in(folder))
    return Found(folder, Kind.FOLDER, len(marks), hash(tuple(marks)), job_file)


def files_in(folder: Path) -> Iterator[Path]:
    """Everything below a folder, links not followed, up to a number that no job needs."""
    left = MAX_ENTRIES
    waiting = [folder]
    while waiting and left > 0:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                left -= 1
                yield Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))


def _mark(status: os.stat_result) -> int:
    return hash((status.st_size, status.st_mtime_ns, status.st_ino, status.st_mode))
