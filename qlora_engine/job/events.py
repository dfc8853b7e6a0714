"""The one way to write events: JSON lines through structlog, checked against the vocabulary.

Log, live view, report and metrics read the same lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import structlog

from qlora_engine.job.durable import AppendOnly
from qlora_engine.job.record import utc_now
from qlora_engine.job.vocabulary import COMMON, EVENTS

Event = dict[str, Any]
Sink = Callable[[Event], None]

_AS_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str).encode


class UnknownEvent(AssertionError):
    """An event or field that the vocabulary does not hold: a bug of ours."""


class EventLog:
    """Writes events of the vocabulary to one or more sinks.

    Args:
        sinks: each receives every event as a dictionary, in the order of its fields.
        bound: fields that every event carries, such as `job` and `attempt`.
    """

    def __init__(self, sinks: Iterable[Sink], **bound: Any) -> None:
        self._sinks = list(sinks)
        self._bound = bound
        self._logger = structlog.wrap_logger(
            None, processors=[_check_vocabulary, _stamp, self._deliver], wrapper_class=structlog.BoundLogger
        ).bind(**bound)

    def emit(self, event: str, /, **fields: Any) -> None:
        """Write one event.

        Raises:
            UnknownEvent: the name or a field is not in `EVENTS`.
        """
        level = EVENTS[event].level if event in EVENTS else "info"
        getattr(self._logger, level)(event, **fields)

    def bind(self, **fields: Any) -> EventLog:
        """The same log with more fields on every event."""
        return EventLog(self._sinks, **{**self._bound, **fields})

    def with_sink(self, sink: Sink) -> EventLog:
        """The same log with one more sink, which this log does not reach."""
        return EventLog([*self._sinks, sink], **self._bound)

    def _deliver(self, _logger: Any, _method: str, event: Any) -> Any:
        for sink in self._sinks:
            sink(event)
        raise structlog.DropEvent


def _check_vocabulary(_logger: Any, _method: str, event: Any) -> Any:
    kind = EVENTS.get(event["event"])
    if kind is None:
        raise UnknownEvent(f"{event['event']} is not in the vocabulary")
    unknown = event.keys() - kind.fields.keys() - COMMON.keys()
    missing = kind.fields.keys() - event.keys()
    if unknown or missing:
        raise UnknownEvent(f"{event['event']}: unknown {sorted(unknown)}, missing {sorted(missing)}")
    return event


def _stamp(_logger: Any, method: str, event: Any) -> Any:
    first = {"ts": utc_now().isoformat(timespec="milliseconds"), "level": method, "event": event.pop("event")}
    head = {key: event.pop(key) for key in ("job", "attempt") if key in event}
    return first | head | event


def to_line(event: Event) -> str:
    """An event as one line of JSON. Numbers that JSON lacks (NaN, infinity) are written as null."""
    try:
        line = _AS_JSON(event)
    except ValueError:
        line = _AS_JSON(_finite(event))
    # A file name that is not UTF-8 holds lone surrogates, which JSON can write as escapes and UTF-8 cannot.
    return line.encode(errors="backslashreplace").decode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def file_sink(path: Path) -> Sink:
    """A sink that appends each event to a file as one line, safe beside other writers."""
    file = AppendOnly(path)
    return lambda event: file.write_line(to_line(event))


def reopening_sink(path: Path) -> Sink:
    """`file_sink` that keeps no descriptor between two events: for a process that writes to many files, or for months.

    Raises, when an event is written:
        OSError: it cannot be.
    """

    def write(event: Event) -> None:
        file = AppendOnly(path)
        try:
            file.write_line(to_line(event))
        finally:
            file.close()

    return write


def parse_line(line: str | bytes) -> Event | None:
    """The event in a line, or None for a line that a crash cut short."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and "event" in value else None
