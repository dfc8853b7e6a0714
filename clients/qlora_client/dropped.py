"""What lies in the watched folder and is no job: what the daemon has not taken yet, and what it would not take."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from qlora_engine.job.folder import Home

# As `qlora_engine.job.jobfile` and `qlora_worker.letters` have them, which load pydantic and YAML.
SUFFIXES = (".yaml", ".yml", ".json", ".toml", ".submission")
NEWS = timedelta(days=1)  # an older rejection is none


def folder_notes(home: Home, since: datetime | None, now: datetime | None = None) -> list[str]:
    """What somebody should know who looks for a job in the list and does not find it.

    Args:
        home: of the watched folder.
        since: when the newest job was accepted: what was rejected before that has been seen; None if there is no job.
        now: the time; by default that of the clock.
    """
    notes = []
    if count := sum(map(_is_offered, _entries(home.jobs))):
        waits, it = ("waits", "it") if count == 1 else ("wait", "them")
        notes.append(f"{count} {waits} in {home.jobs} for the daemon to take {it}.")
    newest = max(_reasons(home.rejected), default=None)
    if newest is not None:
        rejected = datetime.fromtimestamp(newest[0], UTC)
        if rejected > (now or datetime.now(UTC)) - NEWS and (since is None or rejected > since):
            notes.append(f"{newest[1].removesuffix('.txt')} was rejected. Why: {home.rejected / newest[1]}")
    return notes


def _is_offered(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith(".") or entry.name in ("accepted", "rejected"):
        return False
    if not entry.is_dir():
        return entry.name.lower().endswith(SUFFIXES)
    return any(os.path.exists(f"{entry.path}/job{suffix}") for suffix in SUFFIXES)  # noqa: PTH110  # see `listing`


def _reasons(folder: Path) -> list[tuple[float, str]]:
    """When each text was written, and its name."""
    found = []
    for entry in _entries(folder):
        if entry.name.endswith(".txt"):
            try:
                found.append((entry.stat().st_mtime, entry.name))
            except OSError:  # it is trimmed just now
                continue
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # a list of jobs does not fail for what is none
        return []
