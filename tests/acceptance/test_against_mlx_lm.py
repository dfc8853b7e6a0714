"""One config file, both trainers: mlx_lm's own files run as they are, learn the same, and load back into mlx_lm."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import foreground, tiny

WORDS = ["red", "blue", "seven", "eight", "house", "river", "cloud", "stone", "walk", "sing"]
LONGEST = 64  # tokens, which every row fills: mlx_lm counts a padding token of every shorter row as a target

# The keys of mlx_lm's example config, as a person fills them in.
CONFIG = """\
# The path to the local model directory or Hugging Face repo.
model: "{model}"
# Whether or not to train (boolean)
train: true
# The fine-tuning method: "lora", "dora", or "full".
fine_tune_type: {kind}
# The Optimizer with its possible inputs
optimizer: {optimizer}
optimizer_config:
  adamw:
    betas: [0.9, 0.98]
    eps: 1e-6
    weight_decay: 0.05
    bias_correction: true
  adam: {{}}
# Directory with {{train, valid, test}}.jsonl files
data: "{data}"
seed: 0
# Number of layers to fine-tune
num_layers: 2
batch_size: 4
iters: 120
# Number of validation batches, -1 uses the entire validation set.
val_batches: -1
learning_rate: 2e-3
# report_to: wandb
project_name: null
steps_per_report: 40
steps_per_eval: 120
resume_adapter_file: null
grad_accumulation_steps: 1
adapter_path: "{adapters}"
save_every: 100
test: false
test_batches: 100
max_seq_length: 64
grad_checkpoint: false
lora_parameters:
  keys: ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]
  rank: 8
  scale: 20.0
  dropout: 0.0
"""
SCHEDULE = """\
lr_schedule:
  name: cosine_decay
  warmup: 20 # 0 for no warmup
  warmup_init: 1e-5
  arguments: [2e-3, 120, 1e-5]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 4-bit model that computes in float32, and rows of words that all fill the window."""
    folder = tmp_path_factory.mktemp("mlx-lm")
    tiny.make_model(folder / "model")
    (folder / "data").mkdir()
    draw = random.Random(0)
    for name, count in (("train", 64), ("valid", 16)):
        rows = (json.dumps({"text": " ".join(draw.choices(WORDS, k=LONGEST // 3))}) for _ in range(count))
        (folder / "data" / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def mlx_lm(folder: Path, *arguments: str) -> str:
    """What a command of mlx_lm prints."""
    done = subprocess.run(
        [sys.executable, "-m", "mlx_lm", *arguments],
        env=foreground.environment(folder, COLUMNS="200", NO_COLOR="1"),
        capture_output=True,
        text=True,
        timeout=foreground.TIME_LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_config(made: Path, name: str, *, kind: str, optimizer: str, more: str = "") -> Path:
    text = CONFIG.format(
        model=made / "model", data=made / "data", adapters=made / f"{name}-mlx-lm", kind=kind, optimizer=optimizer
    )
    path = made / f"{name}.yaml"
    path.write_text(text + more)
    return path


@pytest.fixture(scope="module", params=[("lora", "adam", SCHEDULE), ("dora", "adamw", "")], ids=["lora", "dora"])
def trained(made: Path, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A config file of mlx_lm, and the run that it gave here."""
    kind, optimizer, more = request.param
    config = write_config(made, kind, kind=kind, optimizer=optimizer, more=more)
    return config, foreground.train(config, made / kind)


@pytest.mark.slow
def test_the_same_file_learns_the_same_in_both(made: Path, trained: tuple[Path, Path]) -> None:
    """A config that somebody tuned for mlx_lm must not mean anything else here.

    The orders of the rows and the first values of the adapters differ, so the losses agree within 2 percent and are
    not equal; before training they are.
    """
    config, run = trained
    theirs, ours = validations_of(mlx_lm(made, "lora", "-c", str(config))), foreground.validations(run)
    assert ours[0] == pytest.approx(theirs[1], abs=0.0006)
    assert ours[120] == pytest.approx(theirs[120], rel=0.02)
    assert theirs[120] < 0.6 * theirs[1], "too little was learned to compare"


@pytest.mark.slow
def test_the_result_loads_in_generate_and_in_fuse(made: Path, trained: tuple[Path, Path]) -> None:
    """Whoever leaves takes the adapters along; fused into the model they answer the same."""
    adapters = ["--adapter-path", str(trained[1] / "adapters")]
    plain, fused = made / "model", made / f"fused-{trained[1].name}"
    asked = ["--prompt", "red blue", "--max-tokens", "12", "--temp", "0"]
    adapted = mlx_lm(made, "generate", "--model", str(plain), *adapters, *asked)
    assert "Generation: 12 tokens" in adapted
    mlx_lm(made, "fuse", "--model", str(plain), *adapters, "--save-path", str(fused), "--dequantize")
    assert said(mlx_lm(made, "generate", "--model", str(fused), *asked)) == said(adapted)
    assert said(mlx_lm(made, "generate", "--model", str(plain), *asked)) != said(adapted)


def validations_of(printed: str) -> dict[int, float]:
    """The validation losses that mlx_lm's trainer prints, by iteration; that of the first is before training."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    return {int(step): float(loss) for step, loss in re.findall(r"^ *(\d+) +val +([\d.]+)", plain, re.M)}


def said(printed: str) -> str:
    """The answer, between the two rules that mlx_lm draws."""
    return printed.split("==========")[1]
