"""What a run folder says: its files read as far as they can be, whoever wrote them and however they end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from qlora_engine.job.events import Event, parse_line
from qlora_engine.job.folder import RunFolder

Column = NDArray[np.float64]
COLUMNS = (
    "step",
    "loss",
    "tokens",
    "gradient_norm",
    "tokens_per_second",
    "memory_gb",
    "peak_gb",
    "cache_gb",
    "process_gb",
)
MAX_ATTEMPTS = 1000
CHUNK = 4_000_000  # bytes that are read at a time


@dataclass(frozen=True)
class RunData:
    """The content of a run folder.

    Attributes:
        job: spec.json, the resolved job.
        record, runtime, ladder: state.json, runtime.json, ladder.json; empty where there is none.
        events: events.jsonl, in order.
        micro_batches: the columns of metrics.jsonl, float64 (N,), NaN where a line has no number; the step increases.
        exits: exit-N.json, by attempt.
    """

    run: RunFolder
    job: Mapping[str, Any]
    record: Mapping[str, Any]
    runtime: Mapping[str, Any]
    ladder: Mapping[str, Any]
    events: Sequence[Event]
    micro_batches: Mapping[str, Column]
    exits: Mapping[int, Mapping[str, Any]]

    @property
    def spec(self) -> Mapping[str, Any]:
        """The job's keys, every default written out."""
        found = self.job.get("spec")
        return found if isinstance(found, dict) else {}

    def of(self, name: str) -> list[Event]:
        """The events of one name."""
        return [event for event in self.events if event["event"] == name]

    def last(self, name: str) -> Event:
        """The newest event of a name; empty when there is none."""
        return next((event for event in reversed(self.events) if event["event"] == name), {})


def read_run(run: RunFolder) -> RunData:
    """Read a run folder; a file that is missing or cannot be read counts as empty."""
    return RunData(
        run=run,
        job=_object(run.spec),
        record=_object(run.state),
        runtime=_object(run.runtime),
        ladder=_object(run.ladder),
        events=list(_lines(run.events)),
        micro_batches=newest_branch(_columns(_lines(run.metrics))),
        exits={attempt: found for attempt in _attempts(run) if (found := _object(run.exit(attempt)))},
    )


def table(events: Sequence[Event], names: Sequence[str]) -> Mapping[str, Column]:
    """Columns of numbers from events, NaN where one has none; without the steps that were done again later."""
    return newest_branch(_columns(events, names))


def newest_branch(columns: Mapping[str, Column]) -> Mapping[str, Column]:
    """The rows that stand: those before whose step no later row goes back to.

    A resumed attempt, or a rollback, does steps again. What lies beyond the step that it began from is given up.
    """
    step = columns["step"]
    later = np.append(np.minimum.accumulate(step[::-1])[::-1][1:], np.inf)
    kept = step < later
    return {name: column[kept] for name, column in columns.items()}


def number(value: object) -> float:
    """`value` as a float; NaN for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return float("nan")
    try:
        return float(value)
    except OverflowError:
        return float("nan")


def _columns(events: Iterable[Event], names: Sequence[str] = COLUMNS) -> Mapping[str, Column]:
    rows = [[event.get(name) for name in names] for event in events]
    try:
        found = np.array(rows, np.float64)  # None becomes NaN
    except (ValueError, TypeError, OverflowError):
        found = np.array([[number(value) for value in row] for row in rows], np.float64)
    found = found.reshape(-1, len(names))
    found = found[np.isfinite(found[:, 0])]
    return dict(zip(names, found.T, strict=True))


def _lines(path: Path) -> Iterator[Event]:
    """The events of a file; a line that is none, such as one that a crash cut short, is passed over."""
    try:
        with path.open("rb") as file:
            while lines := file.readlines(CHUNK):
                yield from _parsed(lines)
    except OSError:
        return


def _parsed(lines: list[bytes]) -> Iterator[Event]:
    """Many lines as one list: five times as fast as one by one, which is left for lines among which one is damaged."""
    try:
        found = from_json(b"[" + b",".join(lines) + b"]")
    except ValueError:
        found = map(parse_line, lines)
    return (event for event in found if isinstance(event, dict) and isinstance(event.get("event"), str))


def _object(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _attempts(run: RunFolder) -> list[int]:
    found = (path.stem.removeprefix("exit-") for path in run.path.glob("exit-*.json"))
    return sorted(int(text) for text in found if text.isdecimal())[:MAX_ATTEMPTS]
