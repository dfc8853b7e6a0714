"""systemd: the unit as systemd itself reads it, and systemctl."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qlora_engine.host import systemd_unit
from qlora_engine.host.service import ServiceDefinition, define
from qlora_engine.host.systemctl import Systemd
from qlora_engine.job.errors import ProgramFailed
from qlora_engine.job.folder import Home
from support.recorded import Recorded, install, on_path


@pytest.fixture
def definition(tmp_path: Path) -> ServiceDefinition:
    (tmp_path / "a home").mkdir()
    return define(Home(tmp_path / "a home"), {"QLORAD_REDIS_URL": 'unix:///a"b\\c$d%25'})


@pytest.mark.parametrize("user", [None, "root"])
@pytest.mark.skipif(not shutil.which("systemd-analyze") and not os.environ.get("CI"), reason="systemd is not installed")
def test_systemd_itself_finds_nothing_wrong(definition: ServiceDefinition, tmp_path: Path, user: str | None) -> None:
    """A key that it does not know it passes over with a warning that nobody reads."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd is not installed")
    unit = tmp_path / "qlorad.service"
    unit.write_bytes(systemd_unit.render(replace(definition, user=user)))
    found = subprocess.run(
        ["systemd-analyze", "--man=no", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    ours = [line for line in (found.stdout + found.stderr).splitlines() if "qlorad" in line]
    assert (found.returncode, ours) == (0, [])


@pytest.mark.parametrize("user", [None, "me"])
def test_a_unit_says_what_it_was_made_from(definition: ServiceDefinition, user: str | None) -> None:
    """Quotes, backslashes, dollars and per cents mean something to systemd."""
    made = replace(definition, user=user)
    assert systemd_unit.read(systemd_unit.render(made), definition.label) == made


def test_another_file_is_none_of_ours() -> None:
    """A damaged one is said to be out of date, and does not end whoever looks."""
    with pytest.raises(ValueError, match="no unit of qlorad"):
        systemd_unit.read(b"[Unit]\nDescription=x\n", "x")


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    found = install(tmp_path / "bin", "systemctl", files=str(tmp_path), bus=True, units={})
    monkeypatch.setenv("PATH", on_path(tmp_path / "bin"))
    yield found
    found.check()


@pytest.fixture
def systemd(tmp_path: Path, recorded: Recorded) -> Iterator[Systemd]:  # it must be there
    manager = Systemd("qlorad-test", folder=tmp_path)
    program = (sys.executable, "-c", "import time; time.sleep(60)")
    manager.file.write_bytes(manager.content(ServiceDefinition("qlorad-test", tmp_path, program, {"PATH": os.defpath})))
    yield manager
    if recorded.state["bus"]:
        manager.unload()


def test_a_service_comes_and_goes(systemd: Systemd) -> None:
    """The same six words as on a Mac."""
    assert not systemd.state().loaded
    systemd.unload()
    systemd.load()
    first = systemd.state()
    assert (first.loaded, first.running) == (True, True)
    systemd.start()
    assert systemd.state().pid == first.pid
    systemd.restart()
    second = systemd.state()
    assert second.running
    assert second.pid != first.pid
    systemd.stop()
    stopped = systemd.state()
    assert (stopped.loaded, stopped.running, stopped.pid) == (True, False, None)
    systemd.start()
    assert systemd.state().running


def test_without_a_session_it_says_how_to_get_one(systemd: Systemd, recorded: Recorded) -> None:
    """Over ssh as somebody else there is no bus, which systemctl says in words that help nobody."""
    recorded.change(bus=False)
    with pytest.raises(ProgramFailed, match=r"Failed to connect to bus") as caught:
        systemd.load()
    assert "enable-linger" in str(caught.value)
