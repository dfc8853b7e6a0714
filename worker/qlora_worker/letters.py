"""A submission left in the watched folder for a daemon that does not answer now: `<name>.<key>.submission`.

It carries the key that the request carried, so that a submission which was asked for and then left runs once.
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qlora_engine.job import durable
from qlora_engine.job.errors import JobRejected
from qlora_engine.job.folder import Home, slug
from qlora_engine.job.formats import REQUEST
from qlora_engine.job.jobfile import read_text
from qlora_worker.messages import KEY, MAX_TEXT, Submission, is_newer

SUFFIX = ".submission"
MAX_BYTES = 8 * MAX_TEXT  # a character takes up to six bytes as JSON writes it, and the folder's name comes on top


class Letter(BaseModel):
    """A request's key and what was asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(default=REQUEST.current, ge=1, le=REQUEST.current)
    key: str = Field(pattern=KEY)
    submission: Submission


def is_letter(name: str) -> bool:
    """Whether a file of this name is one."""
    return name.endswith(SUFFIX)


def leave(home: Home, letter: Letter) -> Path:
    """Put a submission into the watched folder, whole and durable.

    Returns:
        Where it lies.

    Raises:
        OSError: the folder cannot be written.
    """
    home.jobs.mkdir(parents=True, exist_ok=True)
    path = home.jobs / f"{slug(Path(letter.submission.name).stem)}.{letter.key}{SUFFIX}"
    durable.write_text(path, letter.model_dump_json() + "\n")
    return path


def read(path: Path) -> Letter:
    """Read it back.

    Raises:
        JobRejected: it is not one, or is a link.
    """
    text = read_text(path, MAX_BYTES)
    try:
        return Letter.model_validate_json(text)
    except ValidationError as error:
        if is_newer(text):
            raise JobRejected(
                f"{path.name} was left by a newer qlora than this daemon.",
                where=path.name,
                remedy="Restart the daemon, so that both are of one version (docs/upgrading.md), and submit it again.",
            ) from None
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise JobRejected(
            f"{path.name} is not a submission that `qlora submit` left: {re.sub('[.]$', '', problem['msg'])}.",
            where=f"{path.name}, {place}" if place else path.name,
            remedy="Submit the job file again: qlora submit FILE",
        ) from None
