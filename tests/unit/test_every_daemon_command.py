"""Every command of `qlorad` in every trouble that people have: one clear error, its exit code, no traceback."""

from __future__ import annotations

import json
import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from qlora_daemon import install
from qlora_daemon.cli import app, main
from qlora_daemon.service_commands import _home
from qlora_engine.host import launchctl
from qlora_engine.host.launchctl import Launchd
from qlora_engine.host.service import define, label_of
from qlora_engine.job.errors import Exit
from qlora_engine.job.folder import Home
from qlora_engine.job.lock import HeldLock, acquire, held, holder_of
from support import recorded

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


def unreadable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that root has written; tests may run as root, who could read it."""
    read = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path == file:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    file.touch()
    monkeypatch.setattr(Path, "read_bytes", read_bytes)


def test_the_owner_of_a_service_of_the_machine_can_ask_how_it_stands(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file may hold a password and is root's; whether the daemon runs is no secret."""
    program = recorded.install(tmp_path / "bin", "launchctl", domains=["system"], services={})
    monkeypatch.setenv("PATH", recorded.on_path(tmp_path / "bin"))
    monkeypatch.setattr(launchctl, "MACHINE", tmp_path)
    home.make()
    me = pwd.getpwuid(home.path.stat().st_uid).pw_name
    file = launchctl.Launchd(label_of(home, me), headless=True).file
    unreadable(file, monkeypatch)
    assert run("status", "--json") == Exit.UNAVAILABLE
    installed = json.loads(capsys.readouterr().out)["installed"]
    assert (installed["file"], installed["up_to_date"], installed["user"]) == (str(file), None, me)
    assert run("status") == Exit.UNAVAILABLE
    said = capsys.readouterr().out
    assert "Only root may read that: sudo qlorad status" in said
    assert len(said.splitlines()) > 1
    program.check()


@pytest.mark.parametrize(("effective", "heeds"), [(0, True), (501, False)])
def test_only_root_steers_the_service_of_who_called_sudo(
    home: Home, monkeypatch: pytest.MonkeyPatch, effective: int, heeds: bool
) -> None:
    """`sudo -u trainer qlorad status` asks for the service of trainer."""
    monkeypatch.delenv("QLORAD_HOME")
    monkeypatch.setenv("SUDO_USER", "caller")
    monkeypatch.setattr(os, "geteuid", lambda: effective)
    monkeypatch.setattr(install, "home_of", lambda user: home.path / str(user) if user else None)
    assert _home("trainer").path == home.path / "trainer"
    assert (_home(None).path == home.path / "caller") is heeds


def installed(home: Home, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of a service that launchd does not know at the moment."""
    domains = [f"gui/{os.getuid()}", f"user/{os.getuid()}"]
    recorded.install(tmp_path / "bin", "launchctl", domains=domains, services={})
    monkeypatch.setenv("PATH", recorded.on_path(tmp_path / "bin"))
    manager = Launchd(label_of(home))
    manager.file.parent.mkdir(parents=True)
    manager.file.write_bytes(manager.content(define(home, environment)))
    return manager.file


def test_no_password_is_printed(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed is pasted into reports and kept by CI; the file itself is readable by its owner alone."""
    secrets = {"QLORAD_REDIS_URL": "redis://:hush@127.0.0.1:1/0", "QLORAD_NOTIFY": "slack://hush/hush/hush"}
    installed(home, {**secrets, "QLORAD_POWER": "ac", "WANDB_API_KEY": "hush"}, monkeypatch, tmp_path)
    run("status", "--json")
    printed = capsys.readouterr().out
    shown = json.loads(printed)["installed"]["environment"]
    assert (shown["QLORAD_POWER"], shown["QLORAD_HOME"]) == ("ac", str(home.path))
    assert {*secrets, "WANDB_API_KEY", "PATH"} <= shown.keys()
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    for kind in ("launchd", "systemd"):
        assert run("install", "--print", kind) == 0
        printed += capsys.readouterr().out
    assert printed.count("QLORAD_NOTIFY") == 3
    assert "hush" not in printed


def test_a_home_is_not_deleted_under_a_daemon(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that was started in a terminal may be training; launchd knows nothing of it."""
    file = installed(home, {}, monkeypatch, tmp_path)
    home.make()
    (home.runs / "precious").mkdir()
    with held(home.daemon_lock, {"pid": 4117}):
        said = errors(capsys, run("uninstall", "--delete-home", "--yes"), Exit.UNAVAILABLE)
    assert "process 4117" in said
    assert "Ctrl-C" in said
    assert file.exists()
    assert (home.runs / "precious").exists()


def test_a_home_is_not_deleted_under_a_daemon_that_has_just_been_started(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the look at the lock and the deletion the service is stopped, which takes up to two minutes."""
    file = installed(home, {}, monkeypatch, tmp_path)
    home.make()
    monkeypatch.setattr(install, "STOP_SECONDS", 0.1)
    started: list[HeldLock] = []
    monkeypatch.setattr(Launchd, "unload", lambda _: started.append(acquire(home.daemon_lock, {"pid": 4117})))
    try:
        said = errors(capsys, run("uninstall", "--delete-home", "--yes"), Exit.UNAVAILABLE)
    finally:
        started.pop().release()
    assert "process 4117" in said
    assert file.exists()
    assert home.runs.exists()


@pytest.mark.parametrize("linked", [False, True])
def test_no_daemon_begins_in_a_home_that_is_being_deleted(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, linked: bool
) -> None:
    """It would take jobs into folders that go away."""
    if linked:
        (tmp_path / "disk").mkdir()
        home.path.symlink_to(tmp_path / "disk")
    file = installed(home, {}, monkeypatch, tmp_path)
    home.make()
    (home.runs / "old").mkdir()
    (home.path / "elsewhere").symlink_to(tmp_path)
    holders: list[object] = []
    rmtree = shutil.rmtree

    def watched(path: Path) -> None:
        holders.append(holder_of(home.daemon_lock))
        rmtree(path)

    monkeypatch.setattr("shutil.rmtree", watched)
    assert run("uninstall", "--delete-home", "--yes") == 0
    assert holders
    assert all(holder == {"pid": os.getpid()} for holder in holders)
    left = [path for path in (file, home.path, tmp_path / "disk") if path.exists() or path.is_symlink()]
    assert left == []
    assert tmp_path.exists()


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
