"""Following what a training process writes into its run folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from qlora_engine.job.events import Event, parse_line
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.vocabulary import EVENTS

_TRAINING = frozenset(EVENTS) - {name for name in EVENTS if name.startswith(("job.", "gpu."))}
_TAIL_BYTES = 4096


@dataclass(frozen=True)
class Progress:
    """How far an attempt has come."""

    step: int
    steps: int


class RunWatch:
    """What is new in a run since the last look, as far as it concerns one attempt."""

    def __init__(self, run: RunFolder, attempt: int, *, from_start: bool) -> None:
        self._run, self._attempt = run, attempt
        self._offset = 0 if from_start else _size(run.events)
        self._metrics_size = 0

    def new_events(self) -> list[Event]:
        """Complete lines that the attempt's process has written since the last call."""
        if _size(self._run.events) <= self._offset:
            return []
        with self._run.events.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        complete = content[: content.rfind(b"\n") + 1]
        self._offset += len(complete)
        events = [parse_line(line) for line in complete.splitlines()]
        return [event for event in events if event is not None and self._concerns(event)]

    def progress(self) -> Progress | None:
        """The last step in metrics.jsonl, if there is a new one."""
        size = _size(self._run.metrics)
        if size == self._metrics_size:
            return None
        self._metrics_size = size
        for line in reversed(_tail(self._run.metrics).splitlines()):
            event = parse_line(line)
            if event is not None and event.get("attempt") == self._attempt:
                return Progress(int(event.get("step") or 0), int(event.get("steps") or 0))
        return None

    def _concerns(self, event: Event) -> bool:
        return event.get("attempt") == self._attempt and event["event"] in _TRAINING


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - _TAIL_BYTES))
        return file.read()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
