"""A view that has the whole terminal: drawn where it changes, followed when resized, and always given back."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_client.screen import asks_to_quit, changes
from qlora_engine.job.folder import Home
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from support.terminal import Terminal, in_terminal

JOB = "20261122-143501-sql-assistant"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.make()
    run = home.run(JOB)
    run.path.mkdir()
    JobRecord.new(JOB, "sql-assistant").moved(State.QUEUED).store(run.state)
    return home


def environment(home: Home, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    return {**kept, "QLORAD_HOME": str(home.path), "TERM": "xterm-256color", "PYTHONWARNINGS": "error", **more}


def test_only_lines_that_changed_are_sent() -> None:
    """Over a slow connection a clock that ticks must not send the whole screen each second."""
    assert changes(["a", "b", "c"], ["a", "B", "c"]) == "\x1b[2;1H\x1b[2KB"
    assert changes(["a", "b"], ["a"]) == "\x1b[2;1H\x1b[2K"
    assert changes(["a"], ["a"]) == ""
    assert changes([], ["a", "b"]) == "\x1b[2J\x1b[1;1H\x1b[2Ka\x1b[2;1H\x1b[2Kb"


@pytest.mark.parametrize(
    ("keys", "quits"),
    [(keys, True) for keys in ("q", "Q", "xq", "\x1b", "\x04", "")] + [(keys, False) for keys in ("x", "\x1b[A")],
)
def test_keys_that_end_a_view(keys: str, quits: bool) -> None:
    """`q` as everywhere; an arrow, whose sequence begins as Escape does, is no wish to leave."""
    assert asks_to_quit(keys) is quits


def test_top_follows_the_terminal_and_quits_on_q(home: Home) -> None:
    """Pulled larger, all of the new room is used; after `q` the shell is as it was."""
    with in_terminal(["top", "--every", "3600"], environment(home)) as terminal:
        terminal.wait_for(24, "q quits")
        assert not terminal.answers_line_by_line()
        assert any(JOB in row for row in terminal.rows().values())
        terminal.resize(120, 40)
        terminal.wait_for(40, "q quits")
        assert max(map(len, terminal.rows().values())) == 120
        terminal.resize(60, 10)
        terminal.wait_for(10, "q quits")
        assert max(map(len, terminal.rows().values())) == 60
        terminal.type("q")
        assert terminal.wait() == 0
        assert given_back(terminal)


def given_back(terminal: Terminal) -> bool:
    """The first screen and the cursor are there again, and keys are echoed."""
    return "\x1b[?25h\x1b[?1049l" in terminal.said and terminal.answers_line_by_line()


def break_home(home: Home) -> Callable[[Terminal], object]:
    def broken(terminal: Terminal) -> None:
        shutil.rmtree(home.runs)
        home.runs.touch()
        terminal.resize(81, 24)

    return broken


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("Ctrl-C", 130),
        ("SIGTERM", 128 + signal.SIGTERM),
        ("an error", 71),
    ],
)
def test_the_terminal_is_given_back_however_it_ends(home: Home, how: str, code: int) -> None:
    """Without an echo and a cursor a terminal is of no use, and few know how to mend it."""
    endings: dict[str, Callable[[Terminal], object]] = {
        "Ctrl-C": lambda terminal: terminal.type("\x03"),
        "SIGTERM": lambda terminal: terminal.process.terminate(),
        "an error": break_home(home),
    }
    with in_terminal(["top"], environment(home)) as terminal:
        terminal.wait_for(24, "q quits")
        endings[how](terminal)
        assert terminal.wait() == code
        assert given_back(terminal)
        assert "Traceback" not in terminal.said
        assert ("A file stands where" in terminal.said.rpartition("\x1b[?1049l")[2]) is (how == "an error")


def test_the_list_of_jobs_can_be_watched_without_colours(home: Home) -> None:
    """`ls --watch` shows a change when it happens; NO_COLOR is obeyed."""
    with in_terminal(["ls", "--watch", "--state", "queued"], environment(home, NO_COLOR="1")) as terminal:
        terminal.wait_for(2, f"{JOB}  queued")
        JobRecord.new(JOB, "sql-assistant").moved(State.HELD).store(home.run(JOB).state)
        terminal.resize(90, 20)
        terminal.wait_for(1, "No job fits.")
        terminal.type("q")
        assert terminal.wait() == 0
        assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", terminal.said)


def test_a_dumb_terminal_gets_one_page(home: Home) -> None:
    """An editor's shell window is a terminal that cannot be drawn on."""
    with in_terminal(["top"], environment(home, TERM="dumb")) as terminal:
        assert terminal.wait() == 0
        assert JOB in terminal.said
        assert "\x1b[?1049h" not in terminal.said
