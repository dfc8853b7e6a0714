"""launchd: the property list by its own schema and another reader, and launchctl in all its moods."""

from __future__ import annotations

import os
import pwd
import signal
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.host import launchctl, launchd_plist
from qlora_engine.host.installed import manager_of
from qlora_engine.host.launchctl import Launchd, parse_state
from qlora_engine.host.service import ServiceDefinition, ServiceState, define, label_of
from qlora_engine.job.errors import ProgramFailed
from qlora_engine.job.folder import Home
from support.recorded import Recorded, install, on_path

UID = os.getuid()

# launchd.plist(5): the keys that are used, and the types that it gives them.
SCHEMA: dict[str, type] = {
    "Label": str,
    "ProgramArguments": list,
    "WorkingDirectory": str,
    "EnvironmentVariables": dict,
    "RunAtLoad": bool,
    "KeepAlive": bool,
    "ExitTimeOut": int,
    "ProcessType": str,
    "Umask": int,
    "SoftResourceLimits": dict,
    "StandardOutPath": str,
    "StandardErrorPath": str,
    "LimitLoadToSessionType": list,
    "UserName": str,
}
PROCESS_TYPES = ("Background", "Standard", "Adaptive", "Interactive")
SESSIONS = {"Aqua", "Background", "LoginWindow", "StandardIO", "System"}


@pytest.fixture
def definition(tmp_path: Path) -> ServiceDefinition:
    return define(Home(tmp_path / "home & more"), {"QLORAD_STOP_SECONDS": "30", "QLORAD_REDIS_URL": "redis://<x>"})


# The property list


@pytest.mark.parametrize("user", [None, "me"])
def test_the_plist_has_only_keys_that_launchd_knows(definition: ServiceDefinition, user: str | None) -> None:
    """launchd passes over what it does not know, so a slip would go unnoticed."""
    keys = launchd_plist.keys(replace(definition, user=user))
    for key, value in keys.items():
        assert type(value) is SCHEMA[key], key
    assert keys["ProcessType"] in PROCESS_TYPES
    assert set(keys.get("LimitLoadToSessionType", [])) <= SESSIONS
    assert ("UserName" in keys) != ("LimitLoadToSessionType" in keys)
    assert all(isinstance(value, str) for value in keys["EnvironmentVariables"].values())
    assert keys["SoftResourceLimits"].keys() <= {"NumberOfFiles", "Core", "CPU", "Stack"}


def test_every_path_in_the_plist_is_absolute(definition: ServiceDefinition) -> None:
    """launchd expands neither ~ nor $HOME, and gives a PATH of its own."""
    keys = launchd_plist.keys(definition)
    paths = [keys["ProgramArguments"][0], keys["WorkingDirectory"], keys["StandardErrorPath"], keys["StandardOutPath"]]
    paths += keys["EnvironmentVariables"]["PATH"].split(":")
    assert all(Path(path).is_absolute() for path in paths)
    assert keys["ProgramArguments"][0] == sys.executable


def test_another_reader_finds_the_same(definition: ServiceDefinition) -> None:
    """What plistlib writes and reads could be wrong twice."""
    root = ET.fromstring(launchd_plist.render(definition))  # noqa: S314  # written a moment ago
    assert (root.tag, root.get("version"), len(root)) == ("plist", "1.0", 1)
    assert _value(root[0]) == launchd_plist.keys(definition)


def _value(element: ET.Element) -> Any:
    """Apple's PropertyList-1.0.dtd, read by hand."""
    match element.tag:
        case "dict":
            names, values = element[::2], element[1::2]
            assert all(name.tag == "key" for name in names)
            return {name.text: _value(value) for name, value in zip(names, values, strict=True)}
        case "array":
            return [_value(item) for item in element]
        case "string":
            return element.text or ""
        case "integer":
            return int(element.text or "")
        case "true" | "false":
            return element.tag == "true"
    raise AssertionError(element.tag)


@pytest.mark.parametrize("user", [None, "me"])
def test_a_plist_says_what_it_was_made_from(definition: ServiceDefinition, user: str | None) -> None:
    """That is how one of an older version is told from one that is as it should be."""
    made = replace(definition, user=user)
    assert launchd_plist.read(launchd_plist.render(made)) == made


@pytest.mark.parametrize("content", [b"", b"no plist", b"<plist><dict/></plist>", b"<plist><array/></plist>"])
def test_any_other_file_is_none_of_ours(content: bytes) -> None:
    """A damaged file is said to be out of date, and does not end whoever looks."""
    with pytest.raises(ValueError, match="no property list of qlorad"):
        launchd_plist.read(content)


def test_a_second_home_is_a_second_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the second installation would take the first one's place."""
    monkeypatch.setenv("HOME", str(tmp_path))
    usual, other, third = (label_of(Home(tmp_path / name)) for name in ("qlora", "other", "third"))
    assert usual == "io.qlorad.daemon"
    assert len({usual, other, third}) == 3


# launchctl


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    programs = tmp_path / "bin"
    found = install(programs, "launchctl", domains=[f"gui/{UID}", f"user/{UID}"], services={})
    monkeypatch.setenv("PATH", on_path(programs))
    yield found
    for job in found.state["services"].values():
        os.kill(job["launchd"], 15)
    found.check()


@pytest.fixture
def launchd(tmp_path: Path, recorded: Recorded) -> Launchd:  # it must be there
    manager = Launchd("io.qlorad.test", folder=tmp_path)
    (tmp_path / "logs").mkdir()
    program = (sys.executable, "-c", "import signal; signal.pthread_sigmask(0, [15]); signal.sigwait([15])")
    definition = ServiceDefinition("io.qlorad.test", tmp_path, program, {"PATH": os.defpath})
    manager.file.write_bytes(manager.content(definition))
    manager.file.chmod(0o600)
    return manager


def running(launchd: Launchd) -> ServiceState:
    assert launchctl.comes_true(lambda: launchd.state().running, 10.0)
    return launchd.state()


def test_a_service_is_loaded_and_unloaded(launchd: Launchd, recorded: Recorded) -> None:
    """`bootout` returns while the service still ends; whoever goes on at once meets error 5."""
    assert launchd.state() == ServiceState(loaded=False)
    launchd.load()
    state = running(launchd)
    assert (state.loaded, state.where) == (True, f"gui/{UID}/io.qlorad.test")
    launchd.unload()
    assert launchd.state() == ServiceState(loaded=False)
    launchd.unload()
    assert sum(call[0] == "bootout" for call in recorded.calls) == 1


def test_without_a_login_it_is_a_service_of_the_user(launchd: Launchd, recorded: Recorded) -> None:
    """`gui/UID` does not exist over ssh on a Mac at whose screen nobody has logged in: error 125."""
    recorded.change(domains=[f"user/{UID}"])
    launchd.load()
    assert running(launchd).where == f"user/{UID}/io.qlorad.test"


def test_what_is_still_there_is_waited_for(launchd: Launchd, recorded: Recorded) -> None:
    """Error 5 says so much that only trying again tells the one thing from the other."""
    launchd.load()
    running(launchd)
    os.kill(recorded.state["services"]["io.qlorad.test"]["launchd"], 15)  # it ends in its own time
    launchd.load()
    assert running(launchd).loaded


def test_a_file_that_launchd_refuses_is_one_clear_error(launchd: Launchd, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Input/output error` alone has cost people evenings."""
    monkeypatch.setattr(launchctl, "BUSY_SECONDS", 0.5)
    launchd.file.write_bytes(b"no plist")
    with pytest.raises(ProgramFailed, match=r"refused with 5: Bootstrap failed: 5") as caught:
        launchd.load()
    assert "plutil -lint" in str(caught.value)


def test_a_service_that_was_disabled_is_enabled(launchd: Launchd, recorded: Recorded) -> None:
    """A person who once said `launchctl disable` would get error 5 for ever."""
    recorded.change(disabled=["io.qlorad.test"])
    launchd.load()
    assert running(launchd).loaded


def test_a_restart_is_a_stop_in_order_and_a_start_at_once(launchd: Launchd) -> None:
    """SIGTERM, not SIGKILL, so that a job gets its checkpoint; and not after launchd's ten seconds."""
    launchd.load()
    before = running(launchd)
    launchd.restart()
    after = running(launchd)
    assert after.pid != before.pid
    assert after.last_exit in (0, -signal.SIGTERM)  # the latter before Python has come to its handler


def test_what_is_stopped_is_started(launchd: Launchd) -> None:
    """KeepAlive would start it again at once if it were only ended."""
    launchd.start()
    first = running(launchd).pid
    launchd.start()
    assert running(launchd).pid == first
    launchd.stop()
    assert not launchd.state().loaded
    launchd.start()
    assert running(launchd).pid != first


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = {\n\tstate = running\n\tpid = 7\n\tlast exit code = (never exited)\n}", (True, 7, None)),
        ("x = {\n\tstate = not running\n\tlast exit code = 78: EX_CONFIG\n}", (False, None, 78)),
        ("x = {\n\tstate = not running\n\tlast terminating signal = Killed: 9\n}", (False, None, -9)),
        ("x = {\n\tendpoints = {\n\t\tstate = running\n\t\tpid = 1\n\t}\n}", (False, None, None)),
        ("", (False, None, None)),
    ],
)
def test_what_launchctl_prints_is_read_with_care(text: str, expected: tuple[bool, int | None, int | None]) -> None:
    """Its format is no promise of Apple's; what is not there is not known."""
    state = parse_state(text, "gui/1/x")
    assert (state.running, state.pid, state.last_exit) == expected


def test_a_service_of_the_machine_is_found_by_whose_home_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: Recorded
) -> None:
    """Root installs it, and the user asks for it: both must mean the same file."""
    assert recorded.calls == []
    owner = pwd.getpwuid(UID)
    usual = Home(Path(owner.pw_dir) / "qlora")
    assert label_of(usual, owner.pw_name) == f"io.qlorad.daemon.{owner.pw_name}"
    machine = tmp_path / "LaunchDaemons"
    machine.mkdir()
    monkeypatch.setattr(launchctl, "MACHINE", machine)
    monkeypatch.setenv("HOME", str(tmp_path))
    home = Home(tmp_path / "elsewhere")
    home.path.mkdir()
    assert manager_of(home) is None
    (machine / f"{label_of(home, owner.pw_name)}.plist").touch()
    found = manager_of(home)
    assert found is not None
    assert found.file.parent == machine
