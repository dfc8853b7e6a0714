"""A run that is asked to stop does so soon, at a checkpoint, and goes on as if it had not been."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from support import foreground, tiny
from support.foreground import Engine

STEPS = 40


@pytest.fixture(scope="module")
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job with everything that can go wrong in a resume: dropout, masks, windows that the epoch's end cuts."""
    folder = tmp_path_factory.mktemp("resume")
    model, data = tiny.make_model(folder / "model"), tiny.make_data(folder / "data", train=23, valid=5)
    keys = tiny.job(
        model,
        data,
        iters=STEPS,
        mask_prompt=True,
        grad_checkpoint=True,
        optimizer="adamw",
        lora_parameters={"rank": 4, "scale": 8.0, "dropout": 0.1},
        lr_schedule={"name": "cosine_decay", "arguments": [1e-3, 25], "warmup": 5},
        grad_accumulation_steps=3,
        save_every=7,
        steps_per_eval=10,
    )
    return tiny.write_job(folder / "job.yaml", keys)


@pytest.fixture(scope="module")
def undisturbed(job_file: Path) -> Path:
    run = foreground.train(job_file, job_file.parent / "undisturbed")
    assert len(foreground.losses(run)) == STEPS
    return run


@pytest.fixture(scope="module")
def slow_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job whose micro-batch takes a second or so."""
    folder = tmp_path_factory.mktemp("slow")
    model = tiny.make_model(folder / "model", layers=12)
    (folder / "data").mkdir()
    draw = random.Random(0)
    rows = (json.dumps({"text": "".join(draw.choices("abcdefgh ", k=600))}) for _ in range(8))
    (folder / "data" / "train.jsonl").write_text("\n".join(rows) + "\n")
    keys = tiny.job(model, folder / "data", batch_size=2, save_every=100, max_seq_length=512)
    return tiny.write_job(folder / "job.yaml", keys)


def test_two_runs_of_one_job_are_equal(job_file: Path, undisturbed: Path) -> None:
    """Without this no other comparison means anything."""
    again = foreground.train(job_file, job_file.parent / "again")
    assert foreground.losses(again) == foreground.losses(undisturbed)
    assert foreground.digest(again) == foreground.digest(undisturbed)


def test_a_stop_inside_validation_is_a_stop_at_a_checkpoint(job_file: Path, undisturbed: Path) -> None:
    """Validation can take longer than launchd waits; a stop in it may lose no step and no validation."""
    run = job_file.parent / "in-validation"
    with Engine(job_file, run) as engine:
        engine.wait_for("training.step", step=12)  # the next thing is the validation
        engine.process.send_signal(signal.SIGTERM)
        assert engine.end() == 75
    assert (run / "checkpoints" / "step-000012").is_dir()
    foreground.train(job_file, run)
    assert foreground.validations(run) == foreground.validations(undisturbed)
    assert foreground.digest(run) == foreground.digest(undisturbed)


def test_a_stop_takes_no_longer_than_a_micro_batch_and_a_save(slow_job: Path) -> None:
    """Who asks for the GPU waits for it, and launchd kills what takes too long."""
    run = slow_job.parent / "stopped"
    with Engine(slow_job, run, QLORAD_CPU_BLAS="off") as engine:
        engine.wait_for("training.step", step=3)  # the second window has begun
        engine.process.send_signal(signal.SIGTERM)
        assert engine.end() == 75
    (asked,), (stopped,) = foreground.events(run, "training.stopping"), foreground.events(run, "training.stopped")
    steps = foreground.lines(run / "metrics.jsonl")
    save = foreground.events(run, "checkpoint.saved")[-1]
    assert sum(step["ts"] > asked["ts"] for step in steps) <= 1
    assert stopped["step"] == save["step"] in (2, 4)
    assert seconds_between(asked, stopped) < 2 * max(step["seconds"] for step in steps) + save["seconds"]


def test_a_second_signal_ends_training_in_the_middle_of_a_micro_batch(slow_job: Path) -> None:
    """A person who asks twice means now; the last checkpoint stands."""
    run = slow_job.parent / "ended"
    with Engine(slow_job, run, QLORAD_CPU_BLAS="off") as engine:
        step = engine.wait_for("training.step", step=1)
        engine.process.send_signal(signal.SIGTERM)
        engine.wait_for("training.stopping")
        asked = time.monotonic()
        engine.process.send_signal(signal.SIGTERM)
        assert engine.process.wait(foreground.TIME_LIMIT) == 75
        assert time.monotonic() - asked < step["seconds"]
    assert len(foreground.lines(run / "metrics.jsonl")) == 1
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000000"]
    assert not foreground.events(run, "training.stopped")


def test_a_stop_while_the_model_answers_waits_for_no_answer(job_file: Path) -> None:
    """Before training there is nothing to lose; after it the result is there, and the next start gives the answers."""
    keys = json.loads(job_file.read_text()) | {"samples": 20, "iters": 6, "val_batches": 0}
    file, run = tiny.write_job(job_file.parent / "asked.yaml", keys), job_file.parent / "asked"
    with Engine(file, run) as engine:
        engine.wait_for("phase.started", phase="sample")
        engine.process.send_signal(signal.SIGTERM)
        assert engine.end() == 75
    assert not (run / "checkpoints").exists()
    with Engine(file, run) as engine:
        engine.wait_for("phase.ended", phase="train")
        engine.wait_for("phase.started", phase="sample")
        engine.process.send_signal(signal.SIGTERM)
        assert engine.end() == 75
    assert len(asked(run, "after")) < 5
    assert (run / "adapters" / "adapters.safetensors").exists()
    assert not foreground.events(run, "training.done")
    with Engine(file, run) as engine:
        assert engine.end() == 0
    assert len(foreground.events(run, "training.done")) == 1
    assert set(asked(run, "after")) == set(asked(run, "before"))


def asked(run: Path, when: str) -> list[str]:
    """The prompts that the model has answered before or after training."""
    return [event["prompt"] for event in foreground.events(run, "sample.answered") if event["when"] == when]


def test_a_changed_job_is_not_resumed(job_file: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Going on with other settings would give a result that no job file describes."""
    changed = tmp_path / "job.yaml"
    changed.write_text(job_file.read_text().replace('"learning_rate": 0.001', '"learning_rate": 0.002'))
    process = subprocess.run(
        [sys.executable, "-m", "qlora_engine", str(changed), "--run", str(undisturbed)],
        capture_output=True,
        text=True,
        env=foreground.environment(undisturbed.parent),
        timeout=foreground.TIME_LIMIT,
        check=False,
    )
    assert process.returncode == 65
    assert "learning_rate" in process.stderr
    assert "Traceback" not in process.stderr


def seconds_between(first: dict[str, Any], second: dict[str, Any]) -> float:
    return (datetime.fromisoformat(second["ts"]) - datetime.fromisoformat(first["ts"])).total_seconds()
