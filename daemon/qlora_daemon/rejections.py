"""Keeps `jobs/rejected/` from growing for ever: the newest rejections stay, each with the text beside it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from qlora_engine.job.disposal import REMOVED, set_aside

TEXT = ".txt"


@dataclass(frozen=True)
class Entry:
    """A file or folder in `rejected/`, and when it came there, seconds since 1970."""

    name: str
    time: float


def beyond(entries: list[Entry], keep: int) -> list[str]:
    """The names of what is too much, the text of each rejection with it, oldest first.

    A rejection is a thing and its text, `NAME` and `NAME.txt`; the age of one is that of its text, which was written
    when it was rejected. Of what somebody has half removed the rest counts by itself.
    """
    by_name = {entry.name: entry for entry in entries}
    rejections: list[tuple[float, list[str]]] = []
    for entry in entries:
        text = by_name.get(f"{entry.name}{TEXT}")
        if entry.name.endswith(TEXT) and entry.name.removesuffix(TEXT) in by_name:
            continue  # counted with its thing
        rejections.append((text.time, [entry.name, text.name]) if text else (entry.time, [entry.name]))
    rejections.sort()
    return [name for _, names in rejections[: max(0, len(rejections) - keep)] for name in names]


def trim(rejected: Path, keep: int) -> int:
    """Set aside what is too much; how many names that were.

    Raises:
        OSError: the folder cannot be read or written.
    """
    with os.scandir(rejected) as found:
        entries = [
            Entry(entry.name, entry.stat(follow_symlinks=False).st_mtime)
            for entry in found
            if not entry.name.startswith((REMOVED, "."))
        ]
    gone = beyond(entries, keep)
    for name in gone:
        set_aside(rejected / name)
    return len(gone)
