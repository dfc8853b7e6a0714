"""The numbers of a run as columns, for plots and data frames."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qlora_engine.job.events import Event

# What every event has, or says nothing of the curve.
LEFT_OUT = frozenset({"ts", "level", "event", "job"})


def columns_of(events: Iterable[Event]) -> dict[str, list[Any]]:
    """A column for each field, a row for each step, in the order of steps.

    A step that was done twice, since its first attempt ended before a checkpoint, counts as it was done last. Where an
    event lacks a field that others have, its column holds None.

    Args:
        events: of one kind, oldest first; those without a `step` are passed over.
    """
    rows: dict[int, Event] = {}
    for event in events:
        if isinstance(event.get("step"), int):
            rows[event["step"]] = event
    steps = sorted(rows)
    names = dict.fromkeys(name for step in steps for name in rows[step] if name not in LEFT_OUT)
    return {name: [rows[step].get(name) for step in steps] for name in names}
