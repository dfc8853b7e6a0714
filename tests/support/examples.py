"""The examples in Markdown pages: their fences, in which language, and which of them are not run, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from support.service import ROOT

NOT_RUN = re.compile(r"<!-- not run: (?P<why>.+?) -->")
NONE_RUN = re.compile(r"<!-- nothing here is run: (?P<why>.+?) -->")
SHELL = frozenset({"", "sh", "bash", "shell", "console", "zsh"})  # a fence without a language is not to be overlooked
PYTHON = frozenset({"python", "py", "python3"})
OTHER = frozenset({"text", "yaml", "toml", "json", "jsonl", "pyi", "ini", "xml", "Modelfile"})


@dataclass(frozen=True)
class Example:
    """One fence.

    Attributes:
        page: the file, from the root of the repository.
        line: of the fence, from 1.
        language: of its first line.
        not_run: why the tests do not run it; None where they do.
    """

    page: str
    line: int
    language: str
    text: str
    not_run: str | None = None

    @property
    def is_shell(self) -> bool:
        return self.language in SHELL

    @property
    def is_code(self) -> bool:
        """Somebody may want to run it."""
        return self.is_shell or self.language in PYTHON

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


class MarkAstray(AssertionError):
    """A mark that stands before no example."""


def pages() -> list[Path]:
    """Every page that people read: README and its like, docs/ and the READMEs of the examples."""
    return [
        *(path for name in ("README", "CONTRIBUTING", "CHANGELOG") if (path := ROOT / f"{name}.md").exists()),
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "examples").glob("*/README.md")),
        *sorted((ROOT / "benchmarks").glob("*.md")),
    ]


def examples_in(path: Path) -> list[Example]:
    """The fences of a page, in order, those in lists and quotations, too."""
    text, page = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
    none_run = NONE_RUN.search(text)
    found: list[Example] = []
    mark: Token | None = None
    for token in MarkdownIt("commonmark").parse(text):
        if token.type == "fence":
            why = NOT_RUN.search(mark.content) if mark else none_run
            language = token.info.split()[0] if token.info.strip() else ""
            example = Example(page, (token.map or [0])[0] + 1, language, token.content, why["why"] if why else None)
            if mark and not example.is_code:
                raise MarkAstray(f"{example.place} is marked as not run, but is {language}")
            found.append(example)
            mark = None
        elif mark is not None and token.nesting >= 0:
            raise MarkAstray(f"{page}:{(mark.map or [0])[0] + 1}: no example follows the mark")
        elif token.type == "html_block" and NOT_RUN.search(token.content):
            mark = token
    if mark is not None:
        raise MarkAstray(f"{page}:{(mark.map or [0])[0] + 1}: no example follows the mark")
    return found


def to_run(path: Path) -> list[Example]:
    """Those of a page that the tests run."""
    return [example for example in examples_in(path) if example.is_code and example.not_run is None]
