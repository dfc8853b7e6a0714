"""Keeps what can be made again out of Time Machine's backups and Spotlight's index, on a Mac."""

from __future__ import annotations

import shutil
from pathlib import Path

from qlora_engine.host.program import run
from qlora_engine.job.errors import ProgramFailed

TMUTIL_SECONDS = 30.0  # it asks the backup daemon, which may be starting
NEVER_INDEX = ".metadata_never_index"  # Spotlight passes over a folder that holds a file of this name


def is_here() -> bool:
    """Whether this machine has Time Machine."""
    return shutil.which("tmutil") is not None


def exclude(folder: Path) -> None:
    """Have Time Machine pass over a folder, wherever it is moved to. Twice is once.

    Without `-p`, which excludes a path instead, and needs root: tmutil(8) then marks the folder itself.

    Raises:
        ProgramFailed: tmutil is missing, does not end, or refuses.
    """
    done = run(["tmutil", "addexclusion", str(folder.absolute())], timeout=TMUTIL_SECONDS)
    if done.code != 0:
        raise ProgramFailed(
            f"Time Machine does not leave {folder} out of its backups: {done.said}.",
            where="tmutil addexclusion",
            remedy=f"Training goes on. To leave it out yourself: System Settings, Time Machine, Options, add {folder}.",
        )


def is_used() -> bool | None:
    """Whether Time Machine has a disk to copy to; None where macOS does not tell, as without Full Disk Access.

    Raises:
        ProgramFailed: tmutil is missing or does not end.
    """
    done = run(["tmutil", "destinationinfo"], timeout=TMUTIL_SECONDS)
    if "No destinations configured" in done.out + done.err:
        return False
    return True if done.code == 0 and "Name" in done.out else None


def is_excluded(folder: Path) -> bool:
    """Whether Time Machine passes over a folder.

    Raises:
        ProgramFailed: tmutil is missing, does not end, or refuses.
    """
    done = run(["tmutil", "isexcluded", str(folder.absolute())], timeout=TMUTIL_SECONDS)
    if done.code != 0:
        raise ProgramFailed(f"tmutil does not say what it backs up: {done.said}.", where="tmutil isexcluded")
    return done.out.lstrip().startswith("[Excluded]")


def hide_from_search(folder: Path) -> None:
    """Have Spotlight pass over a folder.

    Raises:
        OSError: it cannot be written.
    """
    (folder / NEVER_INDEX).touch()
