"""What the pages share: tables, code, and choices in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [_row(head), "|" + "---|" * len(head), *(_row(row) for row in rows)]


def code(text: object) -> str:
    """As code."""
    return f"`{text}`"


def any_of(words: Sequence[str]) -> str:
    """`a`, `b` or `c`."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
