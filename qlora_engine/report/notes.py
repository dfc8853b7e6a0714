"""What of note happened in a run: when, at which step, and in which words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qlora_engine.job.events import Event
from qlora_engine.job.text import local_time
from qlora_engine.job.wording import describe
from qlora_engine.report.read import number

# Event to the lane of the time line that it stands in; None for the table alone.
KINDS: dict[str, str | None] = {
    "training.started": None,
    "training.resumed": "resumed",
    "training.restarted": "started over",
    "environment.changed": "environment changed",
    "checkpoint.damaged": "checkpoint damaged",
    "guard.dropped": "dropped",
    "guard.rolled_back": "rolled back",
    "ladder.rung": "out of memory",
    "ladder.damaged": None,
    "training.stalled": "stalled",
    "training.early_stopped": "stopped early",
    "training.stopping": None,
    "training.stopped": None,
    "training.done": None,
    "training.failed": "failed",
    "report.failed": None,
    "job.exited": None,
}
LISTED = 200  # rows of the table
SAME_LISTED = 40  # of one kind


@dataclass(frozen=True)
class Note:
    """One event of note.

    Attributes:
        time: by this machine's clock.
        step: micro-batches done when it happened; None before the first.
        lane: of the time line; None for none.
        text: one line for a person.
        level: info, warning or error.
        more: text of several lines, such as the stacks of a stalled process.
    """

    time: str
    step: int | None
    lane: str | None
    text: str
    level: str
    more: str = ""


def notes_of(events: Iterable[Event]) -> list[Note]:
    """The events of note, in order. One without a step of its own happened at the newest step before it."""
    notes: list[Note] = []
    step: int | None = None
    for event in events:
        if math.isfinite(own := number(event.get("step"))):
            step = int(own)
        if event["event"] in KINDS:
            notes.append(_note(event, step))
        if math.isfinite(back := number(event.get("to_step"))):
            step = int(back)
    return notes


def listed(notes: Sequence[Note]) -> tuple[list[Note], int]:
    """The notes for a table that a person can read, and how many of them are left out.

    Of a kind that fills the table the first are shown; of all, the last.
    """
    counts: dict[str | None, int] = {}
    kept = []
    for note in notes:
        counts[note.lane] = counts.get(note.lane, 0) + 1
        if note.lane is None or counts[note.lane] <= SAME_LISTED:
            kept.append(note)
    kept = kept[-LISTED:]
    return kept, len(notes) - len(kept)


def _note(event: Event, step: int | None) -> Note:
    more = str(event.get("stacks") or "")
    shown = {key: value for key, value in event.items() if key != "stacks"} if more else event
    return Note(
        time=local_time(event.get("ts"), date=True),
        step=step,
        lane=KINDS[event["event"]],
        text=describe(shown),
        level=str(event.get("level", "info")),
        more=more,
    )
