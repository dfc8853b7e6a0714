"""The vocabulary of events: nothing else is written, and every line can be read back."""

from __future__ import annotations

import ast
import json
import math
import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.job.events import EventLog, UnknownEvent, file_sink, parse_line, to_line
from qlora_engine.job.vocabulary import COMMON, EVENTS

ROOT = Path(__file__).parents[2]
PACKAGES = ("daemon/qlora_daemon", "worker/qlora_worker", "clients/qlora_client", "qlora_engine")


def collected() -> tuple[EventLog, list[dict[str, Any]]]:
    seen: list[dict[str, Any]] = []
    return EventLog([seen.append], job="20261122-143501-x", attempt=2), seen


def test_an_event_carries_what_every_event_carries() -> None:
    """Whoever reads a line must know when, how grave and about which job, in the same places."""
    log, seen = collected()
    log.emit("training.stopped", step=5)
    (event,) = seen
    assert list(event) == ["ts", "level", "event", "job", "attempt", "step"]
    assert datetime.fromisoformat(event["ts"]).utcoffset() == timedelta(0)
    assert (event["level"], event["event"], event["attempt"], event["step"]) == ("info", "training.stopped", 2, 5)


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_every_event_can_be_written_and_has_its_level(name: str) -> None:
    """A level that structlog does not know would fail at the moment that the event matters."""
    log, seen = collected()
    log.emit(name, **dict.fromkeys(EVENTS[name].fields))
    assert seen[0]["level"] == EVENTS[name].level
    assert not EVENTS[name].fields.keys() & COMMON.keys()


@pytest.mark.parametrize(
    ("name", "fields"),
    [("training.begun", {}), ("training.stopped", {}), ("training.stopped", {"step": 1, "loss": 2.0})],
)
def test_an_event_outside_the_vocabulary_is_a_bug(name: str, fields: dict[str, Any]) -> None:
    """A reader relies on every name and field; a typo would be lost in silence."""
    log, seen = collected()
    with pytest.raises(UnknownEvent):
        log.emit(name, **fields)
    assert seen == []


def test_a_number_that_json_lacks_becomes_null() -> None:
    """`NaN` is not JSON: jq and every other language stop at such a line."""
    line = to_line({"event": "x", "a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}, "e": 1, "f": None})
    assert json.loads(line) == {"event": "x", "a": None, "b": [None, 1.5], "c": {"d": None}, "e": 1, "f": None}


def test_a_line_is_one_line() -> None:
    """Whatever a message holds."""
    line = to_line({"event": "x", "what": "a\nb\r\u2028\x1b[31m ü", "path": Path("/a")})
    assert line.count("\n") == 0
    assert json.loads(line)["what"] == "a\nb\r\u2028\x1b[31m ü"


def test_a_file_name_that_is_not_utf8_can_be_written(tmp_path: Path) -> None:
    """Such a file may be dropped; its event may not end the daemon."""
    name = os.fsdecode(b"caf\xe9.yaml")
    log = EventLog([file_sink(tmp_path / "log.jsonl")])
    log.emit("file.taken", path=name)
    event = parse_line((tmp_path / "log.jsonl").read_bytes())
    assert event is not None
    assert event["path"] == name


@pytest.mark.parametrize("line", ["", "{", '{"event": "x"', "[1]", "5", '{"a": 1}', b"\xff\xfe", b"\0\0\0"])
def test_a_line_that_a_crash_cut_is_no_event(line: str | bytes) -> None:
    """A reader skips it and goes on."""
    assert parse_line(line) is None


def test_bound_fields_are_added_and_the_file_has_every_event(tmp_path: Path) -> None:
    """The run's own log and the service log say the same."""
    path = tmp_path / "events.jsonl"
    log = EventLog([file_sink(path)], job="a")
    log.bind(attempt=3).emit("training.stopped", step=1)
    log.emit("training.stopped", step=2)
    events = [parse_line(line) for line in path.read_bytes().splitlines()]
    assert [(e["step"], e.get("attempt")) for e in events if e] == [(1, 3), (2, None)]


def test_every_event_and_field_says_what_it_means() -> None:
    """The page of events is made of it."""
    for kind in EVENTS.values():
        assert kind.meaning.endswith(".")
        assert all(kind.fields.values())


def sources() -> Iterator[tuple[Path, ast.AST]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def test_every_event_that_the_code_writes_is_in_the_vocabulary() -> None:
    """Found here, not when it happens for the first time."""
    used: dict[str, list[str]] = {}
    for path, tree in sources():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "emit"):
                continue
            place = f"{path}:{node.lineno}"
            assert node.args, f"{place}: emit without a name"
            name = node.args[0]
            assert isinstance(name, ast.Constant), f"{place}: the name of an event must be written out"
            assert name.value in EVENTS, f"{place}: {name.value} is not in the vocabulary"
            used.setdefault(name.value, []).append(place)
            given = {keyword.arg for keyword in node.keywords}
            unknown = given - {None} - EVENTS[name.value].fields.keys() - COMMON.keys()
            assert not unknown, f"{place}: {name.value} has no field {unknown}"
            if None not in given:
                assert given >= EVENTS[name.value].fields.keys(), f"{place}: fields of {name.value} are missing"
    assert sorted(EVENTS.keys() - used.keys()) == [], "in the vocabulary, but nobody writes it"


def test_there_is_no_other_way_to_write_an_event() -> None:
    """A line from `logging` or a logger of structlog's own would be in no vocabulary."""
    allowed = {"structlog": {"qlora_engine/job/events.py", "daemon/qlora_daemon/log.py"}}
    for path, tree in sources():
        for node in ast.walk(tree):
            match node:
                case ast.Import(names=names):
                    imported = {alias.name.split(".")[0] for alias in names}
                case ast.ImportFrom(module=str(module)):
                    imported = {module.split(".")[0]}
                case _:
                    continue
            for name, places in allowed.items():
                assert name not in imported or str(path) in places, f"{path}:{node.lineno} imports {name}"
