"""What `qlora status` says of a real daemon, and that a child which hangs does not hang the service."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from qlora_engine.job.service_status import ServiceStatus
from qlora_engine.job.states import State
from support.service import Daemon, wait_until


def ask(daemon: Daemon, *options: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "qlora_client.cli", "status", *options],
        env=daemon.environment, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def said(daemon: Daemon) -> ServiceStatus:
    return ServiceStatus.load(daemon.home.status) or ServiceStatus.none()


@pytest.mark.embedded
def test_the_service_is_shown_up_restarting_and_down(daemon: Daemon) -> None:
    """A person who wonders why nothing trains looks here first."""
    code, text = ask(daemon)
    assert code == 69
    assert "does not run" in text
    assert "qlorad" in text

    daemon.start()
    wait_until("it says so", lambda: len(said(daemon).children) == 2 and said(daemon).queue_answers)
    code, text = ask(daemon)
    assert code == 0, text
    assert f"process {daemon.process.pid}" in text

    daemon.child("worker").kill()
    wait_until("the end is noted", lambda: [c.last_exit for c in said(daemon).children if c.name == "worker"] == [-9])
    wait_until("it runs again", lambda: all(child.state == "running" for child in said(daemon).children))
    code, text = ask(daemon, "--json")
    shown = json.loads(text)
    assert (code, shown["healthy"]) == (0, True)
    worker = next(child for child in shown["service"]["children"] if child["name"] == "worker")
    assert (worker["starts"], worker["restarts"], worker["last_exit"]) == (2, 1, -9)

    assert daemon.stop() == 0
    code, text = ask(daemon, "--json")
    assert (code, json.loads(text)["running"]) == (69, False)


def test_a_worker_that_hangs_is_replaced(daemon: Daemon) -> None:
    """A job that it was given would wait for it for ever, and every other job behind that one."""
    daemon.start()
    daemon.child("worker").send_signal(signal.SIGSTOP)
    daemon.drop("waits.yaml", daemon.text(iters=2))
    daemon.wait_for("child.hung", seconds=40, child="worker")
    assert daemon.wait_for_state("waits", State.DONE).crashes == 0
