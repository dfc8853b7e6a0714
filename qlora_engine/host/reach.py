"""Whether folders and files can be read, found out without hanging where they hang."""

from __future__ import annotations

import contextlib
import errno
import json
import stat
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

SECONDS = 2.0
KILL_SECONDS = 0.2
READER = Path(__file__).with_name("reader.py")


class Answer(StrEnum):
    """What came of reading it.

    Attributes:
        READABLE: it can be read.
        MISSING: there is no such thing.
        DENIED: the system refuses; on macOS also since nobody granted access to the folder.
        FAILED: it cannot be read for another reason.
        HANGS: no answer in time: a network disk that is away, or a question of macOS that nobody answers.
    """

    READABLE = "readable"
    MISSING = "missing"
    DENIED = "denied"
    FAILED = "failed"
    HANGS = "hangs"


@dataclass(frozen=True)
class Reached:
    """One folder or file.

    Attributes:
        why: in the system's words, where it cannot be read.
        writable: by this user.
        owner: user id; None where it is not known.
        mode: kind and permission bits, as stat(2) gives them.
    """

    path: Path
    answer: Answer
    why: str = ""
    writable: bool = False
    owner: int | None = None
    mode: int | None = None

    @property
    def is_folder(self) -> bool:
        """It can be read, and holds other things."""
        return self.mode is not None and stat.S_ISDIR(self.mode)


def reach(paths: Iterable[Path], seconds: float = SECONDS) -> dict[Path, Reached]:
    """Read each of them, all at once.

    In a process of its own: a thread that hangs within the kernel would keep this program from ending, and a child
    that does is left behind.

    Args:
        paths: of folders and files.
        seconds: that all of it may take.
    """
    wanted = list(dict.fromkeys(paths))
    if not wanted:
        return {}
    found = {path: Reached(path, Answer.HANGS, f"no answer within {seconds:g} s") for path in wanted}
    for line in _ask([str(path) for path in wanted], seconds).splitlines():
        with contextlib.suppress(ValueError):  # cut off
            about = json.loads(line)
            found[Path(about["path"])] = reached(about)
    return found


def _ask(paths: list[str], seconds: float) -> str:
    """What the reader has printed when it has ended, or when the time is over."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(READER), *paths],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        return process.communicate(timeout=seconds)[0].decode(errors="surrogateescape")
    except subprocess.TimeoutExpired as late:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_SECONDS)
        return (late.output or b"").decode(errors="surrogateescape")
    finally:
        if process.stdout is not None:
            process.stdout.close()


def reached(about: dict[str, object]) -> Reached:
    """Out of a line of the reader's."""
    path, number = Path(str(about["path"])), about["error"]
    if number is None:
        owner, mode = about["owner"], about["mode"]
        return Reached(
            path,
            Answer.READABLE,
            writable=about["writable"] is True,
            owner=owner if isinstance(owner, int) else None,
            mode=mode if isinstance(mode, int) else None,
        )
    kinds = {errno.ENOENT: Answer.MISSING, errno.EACCES: Answer.DENIED, errno.EPERM: Answer.DENIED}
    return Reached(path, kinds.get(number if isinstance(number, int) else 0, Answer.FAILED), str(about["why"]))
