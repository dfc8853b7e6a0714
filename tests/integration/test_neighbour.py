"""A job whose machine is needed for other things, too: it gives way and comes back, and learns the same."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from qlora_client.listing import overview
from qlora_daemon.training_processes import training_processes
from qlora_engine.host import heat, pressure
from qlora_engine.job.events import parse_line
from qlora_engine.job.hindrance import Kind
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from support import foreground, recorded, tiny
from support.recorded import Recorded
from support.service import Daemon, daemon_in, wait_until

STEPS = 10  # micro-batches that it trains between two disturbances
HOURS = 6 * 3600.0


class Machine:
    """A daemon on a Mac as far as its programs tell, and the one job that it trains."""

    def __init__(self, daemon: Daemon, pmset: Recorded, sysctl: Recorded) -> None:
        self.daemon, self.pmset, self.sysctl = daemon, pmset, sysctl

    def job(self) -> JobRecord:
        return self.daemon.job("disturbed")

    def step(self) -> int:
        """The last step that the job has done."""
        metrics = self.daemon.home.run(self.job().id).metrics
        lines = metrics.read_bytes().splitlines() if metrics.exists() else []
        return max((event["step"] for event in map(parse_line, lines) if event is not None), default=0)

    def trains(self) -> None:
        """Wait until it has trained a while."""
        self.daemon.wait_for_state("disturbed", State.RUNNING, seconds=60)
        goal = self.step() + STEPS
        wait_until(f"step {goal}", lambda: self.step() >= goal, 60)

    def waits(self, kind: Kind, words: str) -> None:
        """Wait until it has stopped at a checkpoint for this, and everybody can see why."""
        self.daemon.wait_for("hindrance.began", kind=kind)
        job = self.daemon.wait_for_state("disturbed", State.QUEUED, seconds=60)
        assert words in job.reason
        assert job.checkpoint_step > 0
        wait_until("it is shown", lambda: any(words in line.reason for line in overview(self.daemon.home).jobs), 5)
        assert not training_processes(self.daemon.home)  # the memory is free, too

    def sleeps(self, seconds: float) -> None:
        """Stop every process, as a Mac whose lid is closed does, and let them go on later."""
        processes = self.daemon.processes()
        for process in processes:
            with_no_such(process, signal.SIGSTOP)
        wait_until("all stand still", lambda: not any(map(runs, processes)))
        self.clock("slept", seconds)
        for process in processes:
            with_no_such(process, signal.SIGCONT)

    def clock(self, name: str, seconds: float) -> None:
        """Move one of the daemon's clocks at once."""
        new = self.daemon.home.path / f"{name}.new"
        new.write_text(str(seconds))
        new.rename(self.daemon.home.path / name)


@pytest.fixture
def machine(home: Path, tmp_path: Path) -> Iterator[Machine]:
    programs = tmp_path / "bin"
    pmset = recorded.install(programs, "pmset", source="AC Power", percent=80)
    sysctl = recorded.install(programs, "sysctl", values={pressure.MACOS: 1})
    caffeinate = recorded.install(programs, "caffeinate")
    recorded.install(programs, "notifyutil", values={heat.PRESSURE: 0})
    now = datetime.now(UTC)
    begin, end = (now + timedelta(seconds=seconds) for seconds in (-HOURS / 2, HOURS / 2))
    settings = {
        "PATH": recorded.on_path(programs),
        "TZ": "UTC",
        "QLORAD_LOOK_SECONDS": "1",
        "QLORAD_CALM_SECONDS": "1",
        "QLORAD_TRAINING_HOURS": f"{begin:%H:%M}-{end:%H:%M}",
    }
    with daemon_in(home, module="support.far_clock", environment=settings) as daemon:
        daemon.start()
        yield Machine(daemon, pmset, sysctl)
        caffeinate.check()
        assert len(caffeinate.calls) == daemon.job("disturbed").attempt


@pytest.mark.slow
def test_a_job_that_gives_way_ends_with_the_adapters_of_one_that_never_had_to(machine: Machine, tmp_path: Path) -> None:
    """Sleep, battery, hours, a clock that is set, a pause, memory: none of it may cost more than its own time."""
    model, data = tiny.make_model(tmp_path / "model"), tiny.make_data(tmp_path / "data", train=27, valid=4)
    # Each disturbance is noticed within a second or two, in which a fast machine trains over a hundred steps.
    keys = tiny.job(model, data, iters=1000, save_every=300, steps_per_eval=500, power="ac",
                    lora_parameters={"rank": 4, "scale": 8.0, "dropout": 0.1})  # fmt: skip
    daemon = machine.daemon
    daemon.drop("disturbed.yaml", json.dumps({**keys, "name": "disturbed"}))
    with undisturbed(tmp_path, keys, daemon) as calm:
        machine.trains()
        machine.sleeps(HOURS / 3)
        assert daemon.wait_for("machine.slept")["seconds"] == pytest.approx(HOURS / 3, abs=15)

        machine.trains()
        machine.pmset.change(source="Battery Power", percent=64)
        machine.waits(Kind.BATTERY, "runs on battery")
        assert daemon.requests().ask("pause", {"seconds": 2.0}).ok
        machine.pmset.change(source="AC Power")
        daemon.wait_for("hindrance.ended", kind=Kind.BATTERY)

        machine.trains()
        (over,) = daemon.events("queue.resumed")  # the pause, by itself
        assert over["ts"] < daemon.events("job.state", to="starting")[-1]["ts"]
        machine.clock("clock", HOURS)
        machine.waits(Kind.HOURS, "outside the training hours")
        assert daemon.wait_for("machine.clock_set")["seconds"] == pytest.approx(HOURS, abs=15)
        machine.clock("clock", 0)

        machine.trains()
        machine.sysctl.change(values={pressure.MACOS: 4})
        machine.waits(Kind.PRESSURE, "short of memory")
        machine.sysctl.change(values={pressure.MACOS: 1})

        done = daemon.wait_for_state("disturbed", State.DONE, seconds=180)
        assert calm.wait(180) == 0
    assert (done.attempt, done.crashes, done.stalls) == (4, 0, {})  # one more for each stop; the sleep has cost none
    assert done.ran < 600  # neither the sleep nor the hours that the clock was set by are time of training
    assert [event["kind"] for event in daemon.events("hindrance.ended")] == [Kind.BATTERY, Kind.HOURS, Kind.PRESSURE]
    run = daemon.home.run(done.id).path
    assert adapters(run) == adapters(tmp_path / "calm")
    assert foreground.validations(run) == foreground.validations(tmp_path / "calm")
    machine.pmset.check()


def with_no_such(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal to a process that may be over by now: one of the programs that were asked."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    return False


def adapters(run: Path) -> bytes:
    return (run / "adapters" / "adapters.safetensors").read_bytes()


def undisturbed(folder: Path, keys: dict[str, Any], daemon: Daemon) -> subprocess.Popen[bytes]:
    """The same job in the foreground, with a lock of its own, so that it runs meanwhile."""
    own = {"QLORAD_GPU_LOCK": str(folder / "calm.lock"), "QLORAD_HOME": str(folder), "QLORAD_KEEP_AWAKE": "0"}
    job = tiny.write_job(folder / "calm.yaml", keys)
    return subprocess.Popen(
        [sys.executable, "-m", "qlora_engine", str(job), "--run", str(folder / "calm")],
        env={**daemon.environment, **own}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
