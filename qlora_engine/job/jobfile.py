"""Reading a job file: YAML, JSON or TOML text to a plain dictionary, with limits that a hostile file meets first."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import tomllib
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from qlora_engine.job.errors import JobRejected

SUFFIXES = {".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml"}
MAX_BYTES = 256 * 1024
MAX_DEPTH = 20
MAX_NODES = 5_000
MAX_DIGITS = 100
MAX_DOTS = 200  # on one line of TOML
_UNPRINTABLE = re.compile(r"[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


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
            values = _parse_yaml(text, lines)
        elif kind == "json":
            values = json.loads(text, object_pairs_hook=_without_duplicates)
        else:
            values = _parse_toml(text)
    except RecursionError:
        raise _too_deep(name) from None
    except _Refused as refused:
        raise JobRejected(refused.what, where=_at(name, refused.line), remedy=refused.remedy) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise JobRejected(
            f"{name} is not valid YAML: {error.problem or error.context}.",
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
            f"{name} holds {'nothing' if values is None else f'a {type(values).__name__}'} instead of keys and values.",
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


class _Refused(Exception):
    """Valid syntax that a job file may not use."""

    def __init__(self, what: str, remedy: str, line: int | None = None) -> None:
        super().__init__(what)
        self.what, self.remedy, self.line = what, remedy, line


def _duplicate(key: object, line: int | None = None) -> _Refused:
    return _Refused(f"The key `{key}` stands twice.", "Keep one of the two: which was meant cannot be known.", line)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise _duplicate(key)
        values[key] = value
    return values


class _Loader(yaml.SafeLoader):
    """SafeLoader with limits, numbers as YAML 1.2 reads them, and no duplicate keys."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _too_many(self.peek_event().start_mark.line + 1)  # type: ignore[no-untyped-call]
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _Refused(
                f"The file is nested deeper than {MAX_DEPTH} levels.",
                "A job file needs no more than three levels; remove the rest.",
                mark.line + 1,
            )
        try:
            node = super().compose_node(parent, index)
        finally:
            self.depth -= 1
        # YAML has numbers to the base 60, which take minutes to compute when they are long enough.
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
            raise _Refused(
                f"A number has {len(node.value):,} digits.", "Write a shorter one.", node.start_mark.line + 1
            )
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (AttributeError, LookupError, TypeError, ArithmeticError):  # from PyYAML: `!!timestamp x`, `!!bool x`
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            raise _Refused(
                f"A value is no {kind}.", "Remove the tag that stands before it.", node.start_mark.line + 1
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        # `!!set [[]]` and `!!map x` come here, too, and are refused below.
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = key_node.value
            if isinstance(key, str) and key_node.tag != "tag:yaml.org,2002:merge":
                if key in seen:
                    raise _duplicate(key, key_node.start_mark.line + 1)
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")

# PyYAML follows YAML 1.1, where 1e-5 is a string. mlx_lm reads it as a number, so do we.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _parse_yaml(text: str, lines: dict[tuple[str, ...], int]) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_expansion(node)
        _note_lines(node, (), lines)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _too_many(line: int) -> _Refused:
    return _Refused(
        f"The file holds more than {MAX_NODES:,} values, its aliases expanded.",
        "Write the values out without anchors and aliases, or move data to a data file.",
        line,
    )


def _check_expansion(root: yaml.Node) -> None:
    """Refuse aliases that expand into more nodes than a job file can need (a "billion laughs" file)."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) in sizes:
            if sizes[id(node)] == 0:
                raise _Refused(
                    "An alias refers to a value that holds it.",
                    "Write the value out.",
                    node.start_mark.line + 1,
                )
            return sizes[id(node)]
        sizes[id(node)] = 0  # under way
        total = 1
        if isinstance(node, yaml.MappingNode):
            total += sum(size(key) + size(value) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(size(child) for child in node.value)
        if total > MAX_NODES:
            raise _too_many(node.start_mark.line + 1)
        sizes[id(node)] = total
        return total

    size(root)


def _parse_toml(text: str) -> Any:
    """TOML, but for keys of so many parts that tomllib takes gigabytes: each part copies all before it."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.count(".") > MAX_DOTS and not line.lstrip().startswith("#"):
            raise _Refused(f"A line has more than {MAX_DOTS} dots.", "Break it into several lines.", number)
    return tomllib.loads(text)


def _note_lines(node: yaml.Node, path: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> None:
    if len(path) > 3 or not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            lines[(*path, key.value)] = key.start_mark.line + 1
            _note_lines(value, (*path, key.value), lines)
