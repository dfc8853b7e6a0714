"""The watchdog and the real training process: what stood still goes on as if nothing had been."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from qlora_engine.job.exits import ExitRecord
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.pulse import read
from qlora_engine.job.states import State
from support import tiny
from support.service import REAL, daemon_in, wait_until


def losses(run: RunFolder) -> dict[int, float]:
    """The loss of every step; a step that was done twice must have given the same twice."""
    found: dict[int, float] = {}
    for line in run.metrics.read_text().splitlines():
        event = json.loads(line)
        assert found.setdefault(event["step"], event["loss"]) == event["loss"], f"step {event['step']} differs"
    return found


def result(run: RunFolder) -> str:
    return hashlib.sha256((run.adapters / "adapters.safetensors").read_bytes()).hexdigest()


def test_a_real_training_process_that_stands_still_goes_on_the_same(home: Path) -> None:
    """A stall costs time, and nothing else: every loss and the adapters are those of a run without it."""
    model, data = tiny.make_model(home / "model"), tiny.make_data(home / "data", train=23, valid=5)
    job = tiny.write_job(home / "job.yaml", tiny.job(model, data, iters=60, save_every=20, optimizer="adamw"))
    with daemon_in(home, module=REAL, environment={"QLORAD_STALL_SECONDS": "8"}) as daemon:
        daemon.start()
        daemon.drop("held.yaml", job.read_text())
        held = daemon.home.run(daemon.wait_for_state("held", State.RUNNING).id)
        wait_until("it trains", lambda: (heard := read(held.pulse)) is not None and heard.step >= 10)
        daemon.training(held.id).send_signal(signal.SIGSTOP)
        calm = train_undisturbed(job, home / "calm", daemon.environment)
        daemon.wait_for_state("held", State.DONE, seconds=60)
        (stall,) = daemon.events("training.stalled")
        assert stall["job"] == held.id
        assert stall["step"] >= 10
        assert "(most recent call first)" in stall["stacks"]
        assert "qlora_engine/training/loop.py" in stall["stacks"]
        ended = ExitRecord.load(held.exit(1))
        assert ended is not None
        assert ended.stalled is not None
        assert not held.exit(3).exists()
        assert len(losses(calm)) == 60
        assert losses(held) == losses(calm)
        assert result(held) == result(calm)


def train_undisturbed(job: Path, run: Path, environment: Mapping[str, str]) -> RunFolder:
    """The same job in the foreground, with a lock of its own, so that it runs meanwhile."""
    subprocess.run(
        [sys.executable, "-m", "qlora_engine", str(job), "--run", str(run)],
        env={**environment, "QLORAD_GPU_LOCK": str(run.with_name("calm.lock"))},
        stdout=subprocess.DEVNULL, check=True, timeout=60,
    )  # fmt: skip
    return RunFolder(run)
