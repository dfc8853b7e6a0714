"""`qlorad install` to `uninstall`, with a launchctl that really starts the daemon, and a job that trains meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_engine.host.service import label_of
from qlora_engine.job.folder import Home
from qlora_engine.job.states import State
from support import tiny
from support.recorded import Recorded, install, on_path
from support.service import Daemon, wait_until

pytestmark = pytest.mark.embedded


class Mac:
    """A machine with a launchd, a user's folder, and a home."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.home = Home(home)
        self.launchctl: Recorded = install(
            folder / "bin", "launchctl", domains=[f"gui/{os.getuid()}", f"user/{os.getuid()}"], services={}
        )
        kept = {name: value for name, value in os.environ.items() if name not in ("QLORAD_REDIS_URL", "SUDO_USER")}
        self.environment = {
            **kept,
            "HOME": str(folder),
            "PATH": on_path(folder / "bin"),
            "QLORAD_HOME": str(home),
            "QLORAD_GPU_LOCK": str(home / "gpu.lock"),
            "QLORAD_SETTLE_SECONDS": "0.3",
            "QLORAD_CPU_BLAS": "off",
            "QLORAD_REPORT": "0",
        }
        self.plist = folder / "Library" / "LaunchAgents" / f"{label_of(self.home)}.plist"

    def qlorad(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "qlora_daemon", *arguments],
            env=self.environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, done.stdout + done.stderr
        self.launchctl.check()
        return done.stdout + done.stderr

    def pid(self) -> int | None:
        installed = json.loads(self.qlorad("status", "--json"))["installed"]
        return int(installed["pid"]) if installed["pid"] else None


@pytest.mark.slow
def test_a_service_is_installed_updated_restarted_and_removed(home: Path, tmp_path: Path) -> None:
    """One command on a Mac; and whatever is done to the service, the job that trains goes on."""
    mac = Mac(tmp_path, home)
    assert "not installed" in mac.qlorad("restart", code=69)
    shown = mac.qlorad("install")
    assert f"Wrote {mac.plist}" in shown
    assert "queue    answers" in shown
    assert (mac.plist.stat().st_mode & 0o777, home.stat().st_mode & 0o077) == (0o600, 0)
    first = mac.pid()

    model, data = tiny.make_model(tmp_path / "model"), tiny.make_data(tmp_path / "data", train=12, valid=2)
    watcher = Daemon(home)
    watcher.drop("long.yaml", json.dumps({**tiny.job(model, data, iters=900, save_every=300), "name": "long"}))
    job = watcher.wait_for_state("long", State.RUNNING, seconds=60)
    wait_until("it trains", watcher.home.run(job.id).metrics.exists, 30)

    mac.qlorad("restart")
    second = mac.pid()
    assert second not in (None, first)
    assert mac.qlorad("install").count("Stopping the service") == 1
    third = mac.pid()
    assert third not in (None, second)

    mac.qlorad("stop")
    assert "Start it: qlorad start" in mac.qlorad("status", code=69)
    assert watcher.home.daemon_lock.read_text() == ""
    mac.qlorad("start")
    done = watcher.wait_for_state("long", State.DONE, seconds=90)
    assert (done.crashes, done.step) == (0, 900)
    assert done.attempt >= 2

    assert f"Kept {home}" in mac.qlorad("uninstall")
    assert not mac.plist.exists()
    assert mac.launchctl.state["services"] == {}
    assert watcher.home.run(job.id).adapters.exists()
    assert "not installed" in mac.qlorad("uninstall", code=69)


def test_a_daemon_in_a_terminal_is_not_pushed_aside(daemon: Daemon, tmp_path: Path) -> None:
    """It may be training; launchd would start the new one again and again beside it."""
    mac = Mac(tmp_path, daemon.home.path)
    daemon.start()
    said = mac.qlorad("install", code=69)
    assert f"process {daemon.process.pid}" in said
    assert "Ctrl-C" in said
    assert not mac.plist.exists()


def test_to_print_a_file_touches_nothing(home: Path, tmp_path: Path) -> None:
    """For whoever wants to read first, on any system; and without the password of a Redis, or a token."""
    mac = Mac(tmp_path, home)
    mac.environment["QLORAD_REDIS_URL"] = "redis://:hush@127.0.0.1:1/0"
    mac.environment["QLORAD_NOTIFY"] = "slack://hush/hush/hush"
    mac.environment["HOME"] = str(tmp_path)
    before = sorted(str(path) for folder in (tmp_path, home) for path in folder.rglob("*"))
    for kind in ("launchd", "systemd"):
        shown = mac.qlorad("install", "--print", kind)
        assert str(home) in shown
        assert "hush" not in shown
    assert "<key>UserName</key>" in mac.qlorad("install", "--print", "launchd", "--headless", "--user", "root")
    assert sorted(str(path) for folder in (tmp_path, home) for path in folder.rglob("*")) == before
    assert mac.launchctl.calls == []


def test_who_may_not_install_is_told_who_may(home: Path, tmp_path: Path) -> None:
    """With sudo the agent would be root's, and its files could not be read by the user any more."""
    mac = Mac(tmp_path, home)
    mac.environment["SUDO_USER"] = "somebody"
    assert "without sudo" in mac.qlorad("install", code=77)
    assert "There is no user" in mac.qlorad("install", "--headless", "--user", "nobody-of-that-name", code=70)
    del mac.environment["SUDO_USER"]
    mac.environment["PATH"] = str(tmp_path)
    assert "neither launchd nor systemd" in mac.qlorad("install", code=69)
