"""Every command of `qlorad` in every trouble that people have: one clear error, its exit code, no traceback."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from qlora_daemon.cli import app, main
from qlora_engine.job.errors import Exit
from qlora_engine.job.folder import Home
from qlora_engine.job.lock import held

COMMANDS = ("install", "uninstall", "status", "start", "stop", "restart")
STEERS = ("uninstall", "start", "stop", "restart")  # a service, which there must be


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Home]:
    for name in [name for name in os.environ if name.startswith(("QLORAD_", "SUDO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("QLORAD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.argv", ["qlorad"])
    return Home(tmp_path / "home")


def run(*arguments: str) -> int:
    """The exit code."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


def errors(capsys: pytest.CaptureFixture[str], code: int, expected: int) -> str:
    said = capsys.readouterr().err
    assert code == expected, said
    assert "Traceback" not in said
    assert "a bug" not in said
    return said


def test_no_command_is_left_out() -> None:
    """A new command must be put through all of this."""
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    assert set(root.commands) == set(COMMANDS)


def test_the_list_of_commands_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A sentence that is cut explains nothing."""
    assert run("--help") == 0
    assert "..." not in capsys.readouterr().out.partition("Commands:")[2]


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_a_command_line_that_cannot_be(name: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """An option that there is not, and a word too many; EX_USAGE, as for `qlora`."""
    for wrong in ("--no-such-option", "nosuch"):
        said = errors(capsys, run(*name.split(), wrong), Exit.USAGE)
        assert wrong in said
        assert f"qlorad {name}".strip() in said
    assert not home.path.exists()


@pytest.mark.parametrize("words", ["install --print csh", "install --print launchd --json"])
def test_a_value_that_cannot_be(words: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong is named."""
    assert "--print" in errors(capsys, run(*words.split()), Exit.USAGE)


@pytest.mark.parametrize("name", STEERS)
def test_a_service_that_is_not_installed(name: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """How it is installed is said, and how the daemon runs without."""
    for arguments in ([name], [name, "--json"]):
        said = errors(capsys, run(*arguments), Exit.UNAVAILABLE)
        assert "not installed" in said
        assert "qlorad install" in said


def test_status_says_by_its_exit_code_that_nothing_runs(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """A script can ask, and gets JSON."""
    assert run("status", "--json") == Exit.UNAVAILABLE
    found = json.loads(capsys.readouterr().out)
    assert (found["running"], found["installed"]) == (False, None)


def test_a_second_daemon(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Two would train one job twice."""
    home.make()
    with held(home.daemon_lock, {"pid": 4117}):
        said = errors(capsys, run(), Exit.UNAVAILABLE)
    assert "process 4117" in said
    assert "remedy" in said


@pytest.mark.parametrize("name", ["", "status"])
def test_a_setting_that_cannot_be(
    name: str, home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The variable is named."""
    monkeypatch.setenv("QLORAD_SETTLE_SECONDS", "soon")
    assert "QLORAD_SETTLE_SECONDS" in errors(capsys, run(*name.split()), Exit.CONFIG)


def test_a_home_that_is_a_file(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said so, and what to do."""
    home.path.touch()
    said = errors(capsys, run(), Exit.OSERR)
    assert "A file stands where a folder should be" in said
    assert "QLORAD_HOME" in said
