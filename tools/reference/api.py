"""docs/api.md: the client for Python, from its signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType

from qlora_client.api import Client, LeftBehind
from qlora_client.progress import Progress
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from reference.words import code, table

HEAD = """# The Python API

`from qlora_client import Client`. [From Python](python.md) shows it at work. Everything is typed, and every error is a
`QloradError` of [these](exit-codes.md#errors). This page is made from the docstrings by `make docs`.
"""

SECTION = re.compile(r"^(Args|Returns|Raises|Attributes):$", re.MULTILINE)
WIDTH = 100
ENTRY = re.compile(r"^(?P<name>[\w, *]+): (?P<text>.*)$")


@dataclass(frozen=True)
class Doc:
    """A docstring in its parts."""

    text: str
    sections: dict[str, str]

    @classmethod
    def of(cls, thing: object) -> Doc:
        """Of a class, function or property."""
        text, *rest = SECTION.split(inspect.getdoc(thing) or "")
        bodies = [inspect.cleandoc(body) for body in rest[1::2]]
        return cls(text.strip(), dict(zip(rest[::2], bodies, strict=True)))

    def entries(self, section: str) -> Iterator[tuple[str, str]]:
        """`name: text` in a section, whose text may go on in lines that are indented."""
        found: list[tuple[str, str]] = []
        for line in self.sections.get(section, "").splitlines():
            entry = ENTRY.match(line)
            if entry and not line.startswith(" "):
                found.append((entry["name"], entry["text"]))
            elif found:
                found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
            elif line.strip():
                found.append(("", line.strip()))
        yield from found


def as_markdown() -> str:
    """The page."""
    lines = [HEAD, "## `Client`", "", *_function(Client.__init__, "Client", Doc.of(Client))]
    for name, member in vars(Client).items():
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            lines += ["", f"### `Client.{name}`", "", Doc.of(member).text]
        elif isinstance(member, FunctionType):
            lines += ["", f"### `Client.{name}`", "", *_function(member, f"client.{name}", Doc.of(member))]
    lines += ["", "## What it gives", ""]
    lines += ["### `JobRecord`", "", Doc.of(JobRecord).text, "", *_fields()]
    states = ", ".join(code(state) for state in State)
    lines += ["", f"`is_final` says that it has ended. A `State` is text, and one of {states}."]
    lines += ["", "### `RunFolder`", "", "What lies where: [the run folder](run-folder.md).", ""]
    lines += _properties(RunFolder)
    lines += ["", "### `Progress`", "", Doc.of(Progress).text, ""]
    lines += [f"- {', '.join(code(one) for one in name.split(', '))}: {text}"
              for name, text in Doc.of(Progress).entries("Attributes")]  # fmt: skip
    lines += ["", "### `LeftBehind`", "", Doc.of(LeftBehind).text]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _function(function: FunctionType, name: str, doc: Doc) -> list[str]:
    lines = ["```pyi", f"{name}{_signature(function)}", "```", "", doc.text, ""]
    lines += [f"- {code(argument)}: {text}" for argument, text in doc.entries("Args")]
    for section in ("Returns", "Raises"):
        entries = list(doc.entries(section))
        if section == "Returns" and entries:
            lines += ["", "Returns: " + " ".join(f"{one}: {text}" if one else text for one, text in entries)]
        elif entries:
            lines += ["", "Raises:", "", *(f"- {code(error)}: {text}" for error, text in entries)]
    return lines


def _signature(function: FunctionType) -> str:
    found = inspect.signature(function)
    arguments: list[str] = []
    for one in found.parameters.values():
        if one.kind is one.KEYWORD_ONLY and "*" not in arguments:
            arguments.append("*")
        if one.name != "self":
            value = "" if one.default is one.empty else f" = {one.default!r}"
            arguments.append(f"{one.name}: {one.annotation}{value}")
    gives = "" if found.return_annotation in ("None", found.empty) else f" -> {found.return_annotation}"
    text = f"({', '.join(arguments)}){gives}"
    return text if len(text) < WIDTH else "(\n" + "".join(f"    {one},\n" for one in arguments) + f"){gives}"


def _fields() -> list[str]:
    rows = (
        (code(name), code(JobRecord.__annotations__[name]), field.description or "")
        for name, field in JobRecord.model_fields.items()
    )
    return table(("field", "type", "meaning"), rows)


def _properties(kind: type) -> list[str]:
    rows = [(code(name), Doc.of(member).text) for name, member in vars(kind).items() if isinstance(member, property)]
    return table(("property", "what it is"), rows)
