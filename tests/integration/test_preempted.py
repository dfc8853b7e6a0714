"""A job that made way for an urgent one learns what it would have learned: the real engine, to the byte."""

from __future__ import annotations

import json
from pathlib import Path

from qlora_engine.job.events import parse_line
from qlora_engine.job.states import State
from support import foreground, tiny
from support.foreground import Engine
from support.service import REAL, Daemon, daemon_in, wait_until


def test_a_preempted_job_ends_with_the_adapters_of_one_that_was_not(home: Path, tmp_path: Path) -> None:
    """In the middle of a window, with dropout, a schedule and masks; as if the other had never been there."""
    model, data = tiny.make_model(tmp_path / "model"), tiny.make_data(tmp_path / "data", train=27, valid=4)
    keys = tiny.job(
        model,
        data,
        iters=300,
        mask_prompt=True,
        optimizer="adamw",
        lora_parameters={"rank": 4, "scale": 8.0, "dropout": 0.1},
        lr_schedule={"name": "cosine_decay", "arguments": [1e-3, 100], "warmup": 5},
        grad_accumulation_steps=3,
        save_every=100,
        steps_per_eval=150,
    )
    alone = tmp_path / "alone"
    with Engine(tiny.write_job(tmp_path / "job.yaml", keys), alone, QLORAD_CPU_BLAS="off") as engine:
        assert engine.end() == 0
    with daemon_in(home, module=REAL) as daemon:
        daemon.start()
        requests = daemon.requests()
        assert requests.ask("pause", {}).ok
        daemon.drop("urgent.yaml", json.dumps({**keys, "name": "urgent", "iters": 3, "urgent": True}))
        urgent = daemon.wait_for_state("urgent", State.QUEUED, seconds=60)
        assert requests.ask("hold", {"job": urgent.id}).ok
        assert requests.ask("resume", {}).ok
        daemon.drop("long.yaml", json.dumps({**keys, "name": "long"}))
        job = daemon.wait_for_state("long", State.RUNNING, seconds=60)
        run = daemon.home.run(job.id)
        wait_until("it has trained a while", lambda: _steps(run.metrics) > 20, 60)
        assert requests.ask("release", {"job": urgent.id}).ok
        daemon.wait_for_state("urgent", State.DONE, seconds=60)
        done = daemon.wait_for_state("long", State.DONE, seconds=90)
        assert (done.attempt, done.crashes) == (2, 0)
        assert _moves(daemon, done.id)[3:6] == ["stopping", "queued", "starting"]
        ours = (run.adapters / "adapters.safetensors").read_bytes()
        assert ours == (alone / "adapters" / "adapters.safetensors").read_bytes()
        assert foreground.validations(run.path) == foreground.validations(alone)


def _steps(metrics: Path) -> int:
    return sum(parse_line(line) is not None for line in metrics.read_bytes().splitlines()) if metrics.exists() else 0


def _moves(daemon: Daemon, job_id: str) -> list[str]:
    return [event["to"] for event in daemon.events("job.state", job=job_id)]
