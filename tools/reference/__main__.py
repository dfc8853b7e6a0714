"""Writes the pages that are made from the code; `--check` says whether those that are there are up to date.

PYTHONPATH=tools python -m reference [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from qlora_engine.job import schema
from reference import api, commands, events, exit_codes, job_file, models, settings

DOCS = Path(__file__).parents[2] / "docs"

# What each file holds.
PAGES: Mapping[str, Callable[[], str]] = {
    "api.md": api.as_markdown,
    "commands.md": commands.as_markdown,
    "events.md": events.as_markdown,
    "exit-codes.md": exit_codes.as_markdown,
    "job-file.md": job_file.as_markdown,
    "job.schema.json": schema.as_text,
    "settings.md": settings.as_markdown,
    "choosing-a-model.md": models.as_markdown,
}


def main(arguments: list[str]) -> int:
    """Write, or check; returns the exit code."""
    made = {name: text() for name, text in PAGES.items()}
    if "--check" not in arguments:
        for name, text in made.items():
            (DOCS / name).write_text(text, encoding="utf-8")
        return 0
    there = {name: path.read_text(encoding="utf-8") for name in made if (path := DOCS / name).exists()}
    stale = sorted(name for name in made if made[name] != there.get(name))
    if stale:
        print(f"Not up to date: {', '.join(stale)}. Write them anew: make docs", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
