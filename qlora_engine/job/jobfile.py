"""Reading a job file: its text to a plain dictionary, and where in it each key stands."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from qlora_engine.job.errors import JobRejected, NoJobFile
from qlora_engine.job.syntax import MAX_DEPTH, Refused, read_json, read_toml, read_yaml
from qlora_engine.job.text import kind_in_words

SUFFIXES = {".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml"}
MAX_BYTES = 256 * 1024
_UNPRINTABLE = re.compile(r"[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def must_be_there(path: Path) -> Path:
    """The path of a job file that somebody has named.

    Raises:
        NoJobFile: there is nothing.
    """
    if not path.exists():
        raise NoJobFile(
            f"There is no file {path}.",
            where=str(path.absolute()),
            remedy="Check the path. A job file to start from: qlora init my-job",
        )
    return path


@dataclass(frozen=True)
class JobText:
    """A job file's content as data, and where each key stands: `job.yaml, line 4`."""

    values: dict[str, Any]
    name: str
    places: dict[tuple[str, ...], str] = field(default_factory=dict)

    def where(self, keys: tuple[str, ...] = ()) -> str:
        """The place of the innermost of `keys` that is known, or the file."""
        for length in range(len(keys), 0, -1):
            if place := self.places.get(keys[:length]):
                return place
        return self.name

    def place_of(self, where: str) -> str:
        """The line, or the `--set`, that says `model: x`; `where` itself where that is not known."""
        place = self.where((where.partition(": ")[0],))
        return where if place == self.name else place


def read_job_file(path: Path) -> tuple[str, JobText]:
    """Read and parse the job file at `path`, which must be a regular file and no link.

    Returns:
        The text as submitted, and its content.

    Raises:
        JobRejected: with what is wrong, on which line, and what would be right.
    """
    text = read_text(path)
    return text, parse(text, path.name)


def parse(text: str, name: str) -> JobText:
    """Parse the text of a job file; its kind is that of `name`'s ending."""
    kind = SUFFIXES.get(Path(name).suffix.lower())
    if kind is None:
        raise JobRejected(
            f"{name} is not a job file.",
            where=name,
            remedy="Give it a name that ends in .yaml, .yml, .json or .toml.",
        )
    if len(text.encode()) > MAX_BYTES:
        raise too_large(name, len(text.encode()))
    if "\0" in text:
        raise _not_text(name)
    lines: dict[tuple[str, ...], int] = {}
    try:
        if kind == "yaml":
            values = read_yaml(text, lines)
        elif kind == "json":
            values = read_json(text)
        else:
            values = read_toml(text)
    except RecursionError:
        raise _too_deep(name) from None
    except Refused as refused:
        raise JobRejected(refused.what, where=_at(name, refused.line), remedy=refused.remedy) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = str(error.problem or error.context).replace("'<stream end>'", "the end of the file")
        raise JobRejected(
            f"{name} is not valid YAML: {problem}.",
            where=f"{name}, line {mark.line + 1}, column {mark.column + 1}" if mark else name,
            remedy="Mend the line, or see examples/ for job files that work.",
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise JobRejected(
            f"{name} is not valid {kind.upper()}: {str(error).splitlines()[0]}.",
            where=name,
            remedy="Mend it, or see examples/ for job files that work.",
        ) from None
    if not isinstance(values, dict):
        raise JobRejected(
            f"{name} holds {'nothing' if values is None else kind_in_words(values)} instead of keys and values.",
            where=name,
            remedy="Write one `key: value` a line; `model`, `data` and `iters` are a good start.",
        )
    _check_depth(values, name)
    places = {keys: _at(name, line) for keys, line in lines.items()}
    return JobText({str(key): value for key, value in values.items()}, name, places)


def as_yaml(value: object) -> str:
    """A value as JSON that YAML reads as the same. Raises `TypeError` or `ValueError` where JSON has no such value.

    JSON escapes a character over U+FFFF as two halves, which YAML takes for two characters; and what YAML forbids, or
    breaks lines at, may stand in JSON as it is.
    """
    return _UNPRINTABLE.sub(lambda found: f"\\U{ord(found[0]):08x}", json.dumps(value, ensure_ascii=False))


def too_large(name: str, size: int) -> JobRejected:
    """The error for a job file over the size limit."""
    return JobRejected(
        f"{name} has {size:,} bytes; a job file has at most {MAX_BYTES:,}.",
        where=name,
        remedy="Put the data into a folder of its own and name it with `data:`.",
    )


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """The text of a regular file that is no link and has at most `limit` bytes. Raises `JobRejected`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise JobRejected(
                f"{path.name} is a symbolic link.", where=path.name, remedy="Copy the file itself here."
            ) from None
        raise JobRejected(
            f"{path.name} cannot be read: {error.strerror}.",
            where=path.name,
            remedy="Check its permissions and drop it again.",
        ) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise JobRejected(f"{path.name} is not a regular file.", where=path.name, remedy="Drop a plain text file.")
        if status.st_size > limit:
            raise too_large(path.name, status.st_size)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    finally:
        os.close(descriptor)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _not_text(path.name) from None
    if "\0" in text:
        raise _not_text(path.name)
    return text


def _not_text(name: str) -> JobRejected:
    return JobRejected(
        f"{name} is not text: it holds bytes that are not UTF-8, or NUL.",
        where=name,
        remedy="Save it as UTF-8 text, or drop the job file instead of a binary file.",
    )


def _too_deep(name: str) -> JobRejected:
    return JobRejected(
        f"{name} is nested deeper than {MAX_DEPTH} levels.",
        where=name,
        remedy="A job file needs no more than three levels; remove the rest.",
    )


def _check_depth(values: Any, name: str) -> None:
    level, depth = [values], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise _too_deep(name)
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]


def _at(name: str, line: int | None) -> str:
    return f"{name}, line {line}" if line else name
