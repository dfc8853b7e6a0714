"""`qlora try` on a run that the engine has really trained: both answers, from the right weights, in its turn."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qlora_client.cli import main
from qlora_engine.job.lock import acquire, holder_of
from qlora_engine.training.answer import Question, answers
from support import tiny
from support.foreground import environment

JOB = "20261122-143501-parity"
PROMPT = "12345?"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a home in which one job has been trained, and its validation loss only rose."""
    folder = tmp_path_factory.mktemp("try")
    model = tiny.make_model(folder / "model")
    data = tiny.make_data(folder / "data")
    unlike = {
        "prompt": "Which?",
        "completion": "QQQQQQQQQQQQQQQQ",
    }  # the more of numbers it learns, the worse this gets
    (data / "valid.jsonl").write_text(json.dumps(unlike) + "\n")
    keys = tiny.job(model, data, learning_rate=0.05, mask_prompt=True)
    job = tiny.write_job(folder / "job.json", keys)
    run = folder / "home" / "runs" / JOB
    subprocess.run(
        [sys.executable, "-m", "qlora_engine", str(job), "--run", str(run), "--json"],
        env=environment(folder),
        capture_output=True,
        timeout=120,
        check=True,
    )
    return folder


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, named by the settings of this process."""
    for name, value in environment(trained).items():
        if name.startswith(("QLORAD_", "HF_")):
            monkeypatch.setenv(name, value)
    return trained


def tried(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    assert main(["try", "parity", PROMPT, "--max-tokens", "12", "--json", *arguments]) == 0
    value = json.loads(capfd.readouterr().out)
    assert isinstance(value, dict)
    return value


def said_by_mlx_lm(model: Path, adapters: Path | None, *, template: bool = True) -> str:
    from mlx_lm import generate, load

    loaded, tokenizer = load(str(model), adapter_path=str(adapters) if adapters else None)[:2]
    turns = [{"role": "user", "content": PROMPT}]
    if not template:
        return generate(loaded, tokenizer, PROMPT, max_tokens=12).strip()
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    return generate(loaded, tokenizer, prompt, max_tokens=12).strip()


def test_both_answers_are_those_that_mlx_lm_gives(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What a person sees before a decision must be what the model will say wherever it is served."""
    answer = tried(capfd)
    assert answer["job"] == JOB
    assert answer["weights"] == "adapters"
    assert answer["base"] == said_by_mlx_lm(here / "model", None)
    assert answer["adapted"] == said_by_mlx_lm(here / "model", here / "home" / "runs" / JOB / "adapters")
    assert answer["base"] != answer["adapted"]


def test_the_best_checkpoint_answers_when_it_is_asked_for(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The last weights are not always the ones worth keeping: here training began at its best, with the base model."""
    answer = tried(capfd, "--best")
    assert answer["weights"] == "step-000000"
    assert answer["adapted"] == answer["base"]


def test_a_model_of_plain_text_is_asked_without_the_chat_template(here: Path, tmp_path: Path) -> None:
    """It never saw the template in training, so an answer to that would say nothing of what it learned."""
    run = shutil.copytree(here / "home" / "runs" / JOB, tmp_path / JOB)
    spec = json.loads((run / "spec.json").read_text())
    for file in spec["data"].values():
        file["format"] = "text"
    (run / "spec.json").write_text(json.dumps(spec))
    (answer,) = answers(Question(run, [PROMPT], max_tokens=12, temp=0.0, seed=0, best=False))
    assert answer["base"] == said_by_mlx_lm(here / "model", None, template=False)
    assert answer["base"] != said_by_mlx_lm(here / "model", None)


def test_both_models_draw_with_the_seed_alone(here: Path) -> None:
    """An answer that nobody can get again convinces nobody."""
    run = here / "home" / "runs" / JOB
    asked = [Question(run, [PROMPT], max_tokens=12, temp=1.0, seed=seed, best=False) for seed in (3, 3, 4)]
    first, again, other = (list(answers(question)) for question in asked)
    assert first == again
    assert first != other


def test_it_waits_for_the_gpu_and_says_for_whom(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two uses of the GPU at once are how a machine runs out of memory."""
    held = acquire(here / "gpu.lock", {"pid": os.getpid(), "job": "20261122-150000-other"})
    timer = threading.Timer(3.0, held.release)  # later than the wait after which it says so
    timer.start()
    assert main(["try", "parity", PROMPT, "--max-tokens", "4"]) == 0
    timer.join()
    output = capfd.readouterr()
    assert f"Waiting for the GPU, which 20261122-150000-other (process {os.getpid()}) uses." in output.err
    assert "ADAPTED (adapters)" in output.out
    assert holder_of(here / "gpu.lock") is None
