"""YAML, JSON and TOML as a job file may use them, with limits that a hostile file meets first."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Hashable
from typing import Any

import yaml

MAX_DEPTH = 20
MAX_NODES = 5_000
MAX_DIGITS = 100
MAX_DOTS = 200  # on one line of TOML


class Refused(Exception):
    """Valid syntax that a job file may not use, on a line where that is known."""

    def __init__(self, what: str, remedy: str, line: int | None = None) -> None:
        super().__init__(what)
        self.what, self.remedy, self.line = what, remedy, line


def read_yaml(text: str, lines: dict[tuple[str, ...], int]) -> Any:
    """The values of a YAML text; notes in `lines` where each key stands.

    Raises:
        Refused, ValueError, RecursionError, yaml.YAMLError: it cannot be used.
    """
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
            raise Refused(
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
            raise Refused(f"A number has {len(node.value):,} digits.", "Write a shorter one.", node.start_mark.line + 1)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (AttributeError, LookupError, TypeError, ArithmeticError):  # from PyYAML: `!!timestamp x`, `!!bool x`
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            raise Refused(
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


def _too_many(line: int) -> Refused:
    return Refused(
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
                raise Refused(
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


def _note_lines(node: yaml.Node, path: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> None:
    if len(path) > 3 or not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            lines[(*path, key.value)] = key.start_mark.line + 1
            _note_lines(value, (*path, key.value), lines)


def read_json(text: str) -> Any:
    """The values of a JSON text. Raises `Refused`, `ValueError` or `RecursionError`."""
    return json.loads(text, object_pairs_hook=_without_duplicates)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise _duplicate(key)
        values[key] = value
    return values


def _duplicate(key: object, line: int | None = None) -> Refused:
    return Refused(f"The key `{key}` stands twice.", "Keep one of the two: which was meant cannot be known.", line)


def read_toml(text: str) -> Any:
    """The values of a TOML text. Raises `Refused`, `ValueError` or `RecursionError`.

    Keys of very many parts are refused: tomllib takes gigabytes for them, since each part copies all before it.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if line.count(".") > MAX_DOTS and not line.lstrip().startswith("#"):
            raise Refused(f"A line has more than {MAX_DOTS} dots.", "Break it into several lines.", number)
    return tomllib.loads(text)
