"""A run that is stopped anywhere and resumed gives the same losses and the same adapters as one that was not."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import tiny

TIME_LIMIT = 60


@pytest.fixture(scope="module")
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job with everything that can go wrong in a resume: dropout, masks, windows that the epoch's end cuts."""
    folder = tmp_path_factory.mktemp("resume")
    model, data = tiny.make_model(folder / "model"), tiny.make_data(folder / "data", train=23, valid=5)
    keys = tiny.job(
        model,
        data,
        iters=60,
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


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"QLORAD_HOME": str(folder / "home"), "QLORAD_GPU_LOCK": str(folder / "gpu.lock")}


def start(job_file: Path, run: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "qlora_engine", str(job_file), "--run", str(run), "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(run.parent),
    )


def run_to_end(job_file: Path, run: Path) -> None:
    process = start(job_file, run)
    process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == 0


def losses(run: Path) -> dict[int, float]:
    """The loss of every step; a step that was done twice must have given the same twice."""
    found: dict[int, float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        assert found.setdefault(event["step"], event["loss"]) == event["loss"], f"step {event['step']} differs"
    return found


def validations(run: Path) -> dict[int, float]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return {event["step"]: event["loss"] for event in events if event["event"] == "validation"}


def digest(run: Path) -> str:
    return hashlib.sha256((run / "adapters" / "adapters.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(job_file: Path) -> Path:
    run = job_file.parent / "undisturbed"
    run_to_end(job_file, run)
    assert len(losses(run)) == 60
    return run


def test_two_runs_of_one_job_are_equal(job_file: Path, undisturbed: Path) -> None:
    """Without this no other comparison means anything."""
    again = job_file.parent / "again"
    run_to_end(job_file, again)
    assert losses(again) == losses(undisturbed)
    assert digest(again) == digest(undisturbed)


@pytest.mark.parametrize("seed", range(2))
def test_a_run_that_is_stopped_and_killed_at_random_steps_ends_the_same(
    job_file: Path, undisturbed: Path, seed: int
) -> None:
    """A preempted job may not learn anything else than one that ran through."""
    draw = random.Random(seed)
    run = job_file.parent / f"stopped-{seed}"
    stops = 0
    while True:
        process = start(job_file, run)
        assert process.stdout is not None
        steps_to_go = draw.randrange(1, 18)
        number = draw.choice([signal.SIGTERM, signal.SIGKILL])
        for line in process.stdout:
            steps_to_go -= '"training.step"' in line
            if steps_to_go == 0 and number:
                process.send_signal(number)
                stops += 1
                break
        process.communicate(timeout=TIME_LIMIT)
        if process.returncode == 0:
            break
        assert process.returncode == (75 if number == signal.SIGTERM else -number)
    assert stops >= 3
    assert losses(run) == losses(undisturbed)
    assert validations(run) == validations(undisturbed)
    assert digest(run) == digest(undisturbed)


def test_a_stop_inside_validation_is_a_stop_at_a_checkpoint(job_file: Path, undisturbed: Path) -> None:
    """Validation can take longer than launchd waits; a stop in it may lose no step and no validation."""
    run = job_file.parent / "in-validation"
    process = start(job_file, run)
    assert process.stdout is not None
    for line in process.stdout:
        if '"step": 12,' in line and '"training.step"' in line:  # the next thing is the validation
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == 75
    assert (run / "checkpoints" / "step-000012").is_dir()
    run_to_end(job_file, run)
    assert validations(run) == validations(undisturbed)
    assert digest(run) == digest(undisturbed)


def test_a_changed_job_is_not_resumed(job_file: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Going on with other settings would give a result that no job file describes."""
    changed = tmp_path / "job.yaml"
    changed.write_text(job_file.read_text().replace('"learning_rate": 0.001', '"learning_rate": 0.002'))
    process = subprocess.run(
        [sys.executable, "-m", "qlora_engine", str(changed), "--run", str(undisturbed)],
        capture_output=True,
        text=True,
        env=environment(undisturbed.parent),
        timeout=TIME_LIMIT,
        check=False,
    )
    assert process.returncode == 65
    assert "learning_rate" in process.stderr
    assert "Traceback" not in process.stderr
