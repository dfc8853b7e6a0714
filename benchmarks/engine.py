"""Train a model shape with random 4-bit weights through the whole engine; prints its last report as JSON.

    python benchmarks/engine.py --shape mistral-7b --width 512 --rows 1 --accumulation 2 --recompute --limit-gb 6
    python benchmarks/engine.py --shape mistral-7b --width 512 --rows 4 --mixed --iters 1000000 --until 600

Makes the model, a tokenizer and rows in a temporary folder, then runs `python -m qlora_engine` on a job file: loading,
checkpoints and events are those of a real run. Rows are full, or with `--mixed` as long as instruction data:
log-normal, 24 tokens to the width, 170 in the mean of 512. With `--until` a long job is stopped at that step: it uses
what is not worth it in a short one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import string
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from qlora_engine.job.errors import Exit

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]


def make_job(folder: Path, model: Path, arguments: argparse.Namespace) -> Path:
    """A job whose rows have `width` inputs, all of them or at most."""
    data = folder / "data"
    data.mkdir()
    draw = random.Random(0)  # noqa: S311  # the same rows every time
    letters = string.ascii_letters + "    "
    lengths = [arguments.width + 8] * 64
    if arguments.mixed:
        lengths = [min(max(round(draw.lognormvariate(5.0, 0.6)), 24), arguments.width) for _ in range(1600)]
    rows = (json.dumps({"text": "".join(draw.choices(letters, k=length))}) for length in lengths)
    (data / "train.jsonl").write_text("\n".join(rows) + "\n")
    job = {
        "model": str(model), "data": str(data), "optimizer": "adamw", "num_layers": -1,
        "lora_parameters": {"rank": arguments.rank, "scale": 2.0, "dropout": 0.0},
        "batch_size": arguments.rows, "grad_accumulation_steps": arguments.accumulation,
        "iters": arguments.iters, "steps_per_report": max(1, (arguments.until or arguments.iters) // 3),
        "max_seq_length": arguments.width + 1, "grad_checkpoint": arguments.recompute, "samples": 0,
        "memory": {"limit_gb": arguments.limit_gb}, "packing": arguments.packing, "val_batches": 0,
    }  # fmt: skip
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    return file


def make_model(folder: Path, shape: str) -> None:
    """In a process of its own, whose memory is gone when training starts."""
    code = f"import engine; from pathlib import Path; engine.write_model(Path({str(folder)!r}), {shape!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "benchmarks", env=_environment())


def write_model(folder: Path, shape: str) -> None:
    """Write the shape with random weights, quantized to 4 bits in groups of 64."""
    # Only the process that makes the model needs these.
    import mlx.core as mx  # noqa: PLC0415
    from mlx.utils import tree_flatten  # noqa: PLC0415
    from step import quantized, settings_of  # noqa: PLC0415

    from support.tiny import make_tokenizer  # noqa: PLC0415

    folder.mkdir(parents=True)
    make_tokenizer(folder)
    model = quantized(shape)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    config = settings_of(shape) | {"quantization": {"group_size": 64, "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The last report of a run."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = arguments.model or folder / "model"
        if not model.exists():
            make_model(model, arguments.shape)
        job = make_job(folder, model, arguments)
        run = [sys.executable, "-m", "qlora_engine", str(job), "--run", str(folder / "run"), "--json"]
        events = _events(run, _environment(folder), arguments.until)
        reports = [event for event in events if event["event"] == "training.report"]
    chosen = {event["event"]: event for event in events if event["event"].endswith(".chosen")}
    phases = {event["phase"]: event["seconds"] for event in events if event["event"] == "phase.ended"}
    kept = (
        "tokens_per_second",
        "steps_per_second",
        "memory_gb",
        "peak_gb",
        "cache_gb",
        "process_gb",
        "loss",
        "padding",
        "shapes",
    )
    found = {key: reports[-1][key] for key in kept} | {"wall_tokens_per_second": _by_the_wall(reports)}
    asked = {**vars(arguments), "model": None}
    return {"trainer": "qlorad engine", **asked, **found, "phases": phases, "chosen": chosen}


def _events(run: list[str], environment: dict[str, str], until: int | None) -> list[dict[str, Any]]:
    """What a run says until its end, or until it is stopped after the report of a step."""
    events = []
    with subprocess.Popen(run, env=environment, stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None  # noqa: S101  # for mypy: it was asked for
        for line in engine.stdout:
            events.append(json.loads(line))
            if until is not None and events[-1]["event"] == "training.report" and events[-1]["step"] >= until:
                engine.terminate()
    if engine.returncode not in (0, Exit.TEMPFAIL):
        raise SystemExit(f"rc {engine.returncode}: {events[-5:]}")
    return events


def _by_the_wall(reports: list[dict[str, Any]]) -> float | None:
    """Targets a second between the last two reports, checkpoints and all else included."""
    if len(reports) < 2:
        return None
    (tokens, began), (more, ended) = ((r["tokens"], datetime.fromisoformat(r["ts"])) for r in reports[-2:])
    return round((more - tokens) / (ended - began).total_seconds(), 1)


def _environment(home: Path | None = None) -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "worker"), str(ROOT / "tests"), str(ROOT / "benchmarks")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    if home is not None:
        variables |= {"QLORAD_HOME": str(home / "home"), "QLORAD_GPU_LOCK": str(home / "gpu.lock")}
    return variables


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="smollm2-135m")
    parser.add_argument("--model", type=Path, help="a folder to keep the model in, for several runs")
    parser.add_argument("--width", type=int, default=512, help="inputs a row")
    parser.add_argument("--rows", type=int, default=1, help="rows a micro-batch")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing of every layer")
    parser.add_argument("--limit-gb", type=float, default=None, help="memory.limit_gb of the job")
    parser.add_argument("--mixed", action="store_true", help="rows of many lengths")
    parser.add_argument("--packing", choices=["auto", "on", "off"], default="auto")
    parser.add_argument("--iters", type=int, default=12)
    parser.add_argument("--until", type=int, help="stop after this step")
    print(json.dumps(measure(parser.parse_args())))
