"""The recorded part of docs/first-job.md: blocks between marks, each with what one step showed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "first-job.md"
_BLOCK = re.compile(r"(<!-- recorded: ([a-z-]+)(?: (\d+)\+(\d+))? -->\n```text\n).*?(```\n<!-- end -->)", re.DOTALL)
_INDEX_NOISE = re.compile(r"(WARNING: Location|Looking in (indexes|links)|DEPRECATION)")


def written(page: str, steps: Mapping[str, Sequence[str]]) -> str:
    """The page with these steps in its blocks.

    A mark `<!-- recorded: logs 12+6 -->` keeps the first 12 lines and the last 6, with `…` between them.

    Raises:
        KeyError: a block is of no step.
    """

    def block(match: re.Match[str]) -> str:
        begin, step, first, last, end = match.groups()
        lines = list(steps[step])
        if first is not None and len(lines) > int(first) + int(last):
            lines = [*lines[: int(first)], "…", *lines[len(lines) - int(last) :]]
        return begin + "".join(f"{line}\n" for line in lines) + end

    return _BLOCK.sub(block, page)


def recorded(page: str) -> dict[str, list[str]]:
    """What stands in the page's blocks, by step."""
    return {match.group(2): match.group(0).splitlines()[2:-2] for match in _BLOCK.finditer(page)}


def without_the_machine(lines: Sequence[str], home: Path) -> list[str]:
    """Lines as they would stand on anybody's terminal: `~` for the home, nothing about where packages came from."""
    return [line.replace(str(home), "~") for line in lines if not _INDEX_NOISE.match(line)]
