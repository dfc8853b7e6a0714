"""The daemon starts and stops in order, alone in its home, and costs little."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from qlora_daemon.training_processes import training_processes
from qlora_engine.job.states import State
from support.service import Daemon, daemon_in, wait_until


@pytest.mark.embedded
def test_it_stops_in_order_and_leaves_nothing(daemon: Daemon) -> None:
    """SIGTERM, as launchd sends it, ends worker, then Valkey, then the daemon with 0, and frees the lock."""
    daemon.start()
    assert daemon.stop() == 0
    order = [event["child"] for event in daemon.events("child.exited")]
    assert order == ["worker", "valkey"]
    assert {event["code"] for event in daemon.events("child.exited")} == {0}
    assert daemon.events()[-1]["event"] == "daemon.stopped" or daemon.events("daemon.stopped")
    assert not daemon.processes()
    daemon.start()  # the lock is free


@pytest.mark.embedded
def test_ctrl_c_reaches_the_daemon_alone(shared: Daemon) -> None:
    """Ctrl-C goes to the terminal's foreground group; were Valkey in it, it would end first."""
    group = os.getpgid(shared.process.pid)
    for child in ("valkey", "worker"):
        assert os.getpgid(shared.child(child).pid) != group


def test_a_second_daemon_is_refused(shared: Daemon) -> None:
    """Two daemons on one home would both write its records, and steal each other's socket."""
    second = subprocess.run(
        [sys.executable, "-P", "-m", "qlora_daemon"],
        env=shared.environment, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert second.returncode == 69
    assert str(shared.process.pid) in second.stderr
    assert "remedy:" in second.stderr
    assert "Traceback" not in second.stderr
    assert shared.process.poll() is None


@pytest.mark.embedded
def test_a_home_whose_socket_would_not_fit_is_refused(tmp_path: Path) -> None:
    """The system's own message for it names no path and no remedy."""
    home = tmp_path / ("long" * 30)
    home.mkdir()
    with daemon_in(home, module="qlora_daemon") as daemon:
        assert daemon.start(ready=False).wait(20) == 78
        assert "QLORAD_HOME" in daemon.errors()
        assert "Traceback" not in daemon.errors()


@pytest.mark.embedded
def test_the_socket_is_for_this_user_only(shared: Daemon) -> None:
    """Whoever can reach the queue can start trainings."""
    assert shared.home.state.stat().st_mode & 0o777 == 0o700
    assert shared.home.socket.stat().st_mode & 0o777 == 0o600


def test_a_home_that_is_named_from_the_current_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What trains for it is found by the home in its environment, wherever the next daemon is started."""
    monkeypatch.chdir(home.parent)
    with daemon_in(home, environment={"QLORAD_HOME": home.name}) as daemon:
        daemon.start()
        daemon.drop("job.yaml", daemon.text(iters=200))
        job = daemon.wait_for_state("job", State.RUNNING)
        training = daemon.training(job.id)
        assert training.environ()["QLORAD_HOME"] == str(home)
        assert training_processes(daemon.home) == {training.pid: (job.id, 1)}


def test_a_setting_that_is_none_is_named(home: Path) -> None:
    """A misspelt variable is ignored by the settings; without a word nobody would notice."""
    with daemon_in(home, environment={"QLORAD_SETTLE_SECOND": "9"}) as daemon:
        daemon.start()
        event = daemon.wait_for("setting.unknown")
        assert (event["name"], event["nearest"]) == ("QLORAD_SETTLE_SECOND", "QLORAD_SETTLE_SECONDS")


@pytest.mark.embedded
def test_a_valkey_left_behind_is_ended_even_if_it_hangs(daemon: Daemon) -> None:
    """A second server on the same socket would take it over from the first, with half of the keys in each."""
    daemon.start()
    left = daemon.child("valkey")
    left.suspend()
    daemon.process.kill()
    daemon.process.wait()
    daemon.start()
    assert not left.is_running() or left.status() == psutil.STATUS_ZOMBIE
    assert daemon.child("valkey").pid != left.pid


def test_a_stop_during_a_job_checkpoints_it_and_a_new_daemon_goes_on(daemon: Daemon) -> None:
    """A reboot, an update or a closed lid may cost at most the micro-batch under way."""
    daemon.start()
    daemon.drop("long.yaml", daemon.text(iters=50))
    job = daemon.wait_for_state("long", State.RUNNING)
    daemon.wait_for("checkpoint.saved", job=job.id)
    assert daemon.stop() == 0
    stopped_at = daemon.events("training.stopped", job=job.id)[-1]["step"]
    job = daemon.job("long")
    assert (job.state, job.crashes, job.attempt) == (State.QUEUED, 0, 1)
    assert daemon.events("job.exited")[-1]["outcome"] == "stopped"
    daemon.start()
    job = daemon.wait_for_state("long", State.DONE)
    assert daemon.events("training.resumed")[-1]["step"] == stopped_at
    assert (job.attempt, job.step) == (2, 50)


def test_a_second_signal_hurries_the_stop(home: Path) -> None:
    """A person who presses Ctrl-C twice does not want to wait for a checkpoint that does not come."""
    with daemon_in(home, environment={"QLORAD_STOP_SECONDS": "60"}) as daemon:
        daemon.start()
        daemon.drop("deaf.yaml", daemon.text(iters=1000, seed=4))
        daemon.wait_for("training.started")
        began = time.monotonic()
        for _ in range(3):
            daemon.process.send_signal(signal.SIGINT)
            wait_until("it noticed", lambda: daemon.events("daemon.stopping"))
            time.sleep(0.5)  # a person's second press; the rungs of the ladder are checked between
        assert daemon.process.wait(20) == 0
        assert time.monotonic() - began < 15
        assert daemon.job("deaf").state is State.QUEUED
        assert daemon.job("deaf").crashes == 0


def test_a_training_process_that_hangs_is_killed_in_time(home: Path) -> None:
    """launchd kills the daemon alone after its time limit, and would leave the rest as orphans."""
    with daemon_in(home, environment={"QLORAD_STOP_SECONDS": "1"}) as daemon:
        daemon.start()
        daemon.drop("hung.yaml", daemon.text(iters=1000))
        job = daemon.wait_for_state("hung", State.RUNNING)
        daemon.training(job.id).suspend()
        assert daemon.stop(seconds=25) == 0
        assert daemon.job("hung").state is State.QUEUED


@pytest.mark.embedded
def test_a_hung_valkey_does_not_hold_up_the_stop(daemon: Daemon) -> None:
    """A stop must end even when the queue does not answer any more."""
    daemon.start()
    daemon.child("valkey").suspend()
    assert daemon.stop(seconds=40) == 0
    assert daemon.events("child.killed", child="valkey")


@pytest.mark.embedded
def test_idle_it_costs_little(shared: Daemon) -> None:
    """An appliance that waits for work must not warm the room: 200 MB and 1% of a core for all three."""
    processes = [shared.process.pid, shared.child("valkey").pid, shared.child("worker").pid]
    observed = [psutil.Process(pid) for pid in processes]
    time.sleep(2)  # what starting left to do
    before = [sum(process.cpu_times()[:2]) for process in observed]
    time.sleep(5)  # the time over which the load is measured
    used = sum(sum(process.cpu_times()[:2]) for process in observed) - sum(before)
    resident = sum(process.memory_info().rss for process in observed)
    assert used < 0.05
    assert resident < 200e6


@pytest.mark.embedded
def test_tcp_is_not_open(shared: Daemon) -> None:
    """Nothing of the daemon listens on the network."""
    for process in shared.processes():
        families = {connection.family for connection in process.net_connections()}
        assert families <= {socket.AF_UNIX}
