"""Measure the peak memory of training against the estimate that is made before it: one JSON line a case.

    python benchmarks/memory.py --backend-cases cpu --out benchmarks/results/memory-cpu.jsonl
    python benchmarks/memory.py --backend-cases cuda --out benchmarks/results/memory-cuda.jsonl
    python benchmarks/memory.py --fit benchmarks/results/memory-*.jsonl
    python benchmarks/memory.py --calibrate cpu benchmarks/results/memory-cpu-drawn.jsonl
    python benchmarks/memory.py --table benchmarks/results/memory-*.jsonl

Each case makes a llama model with random weights in a temporary folder and trains it for a few steps with the engine
itself (`python -m qlora_engine`), in a process of its own with a time limit. The peak is MLX's own
(`mx.get_peak_memory()`), from the start of the process on. `--fit` computes the estimates anew with the constants of
now and compares; `--calibrate` searches for constants that come nearer and prints them, to be put into
qlora_engine/job/preflight/backends.py; `--table` writes the comparison into docs/memory.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from qlora_engine import blas
from qlora_engine.job.preflight.backends import BACKENDS, Backend
from qlora_engine.job.preflight.batch import Batch
from qlora_engine.job.preflight.memory import GIGA, Estimate, estimate
from qlora_engine.job.preflight.shape import ModelShape
from qlora_engine.job.spec import JobSpec

PAGE = Path(__file__).parents[1] / "docs" / "memory.md"
MARKS = ("<!-- measured: made by benchmarks/memory.py --table -->", "<!-- end of measured -->")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@dataclass(frozen=True)
class Case:
    """One job: the model's shape, as its config.json says it, and the job's keys.

    Attributes:
        length: tokens of every row.
        bits: of the stored weights; None stores them in bfloat16.
    """

    name: str
    model: dict[str, Any]
    job: dict[str, Any] = field(default_factory=dict)
    length: int = 257
    bits: int | None = 4


def llama(hidden: int, layers: int, mlp: int, heads: tuple[int, int], vocabulary: int, **more: Any) -> dict[str, Any]:
    """The config.json of a llama; `heads` of queries, and of keys and values."""
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden,
        "num_hidden_layers": layers, "intermediate_size": mlp, "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1], "vocab_size": vocabulary, "rms_norm_eps": 1e-5, "rope_theta": 1e5,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "eos_token_id": 2, **more,
    }  # fmt: skip


SMALL = llama(576, 30, 1536, (9, 3), 49152)  # 135M
MEDIUM = llama(960, 32, 2560, (15, 5), 49152)  # 360M
HALF = llama(896, 24, 4864, (14, 2), 151936)  # 0.5B
ONE = llama(2048, 16, 8192, (32, 8), 128256, head_dim=64)  # 1B
THREE = llama(3072, 28, 8192, (24, 8), 128256, head_dim=128)  # 3B
SEVEN = llama(4096, 32, 14336, (32, 8), 32768, tie_word_embeddings=False)  # 7B
EIGHT = llama(4096, 32, 14336, (32, 8), 128256, tie_word_embeddings=False)  # 8B
TOY = llama(512, 6, 1408, (8, 4), 4096)
DEEP = llama(256, 48, 768, (4, 4), 2048)
WIDE = llama(1024, 4, 4096, (16, 4), 32000, tie_word_embeddings=False)


def lora(rank: int, dropout: float = 0.0) -> dict[str, Any]:
    """`lora_parameters`."""
    return {"rank": rank, "scale": 2.0, "dropout": dropout}


RECOMPUTED = {"grad_checkpoint": True}
ACCUMULATED = {"grad_accumulation_steps": 3}
WITHIN_6 = {"batch_size": 1, "grad_accumulation_steps": 2, **RECOMPUTED, "memory": {"limit_gb": 6.0}}
WITHIN_8 = {"batch_size": 1, **RECOMPUTED, "memory": {"limit_gb": 8.0}}
WITHIN_10 = {"batch_size": 4, **RECOMPUTED, "memory": {"limit_gb": 10.0}}
WITHIN_12 = {"batch_size": 1, **RECOMPUTED, "memory": {"limit_gb": 12.0}}
CASES: dict[str, list[Case]] = {
    "cpu": [
        Case("135M, 16 layers", SMALL, {"num_layers": 16, "batch_size": 2}),
        Case("135M, batch 4", SMALL, {"batch_size": 4}),
        Case("135M, checkpointed", SMALL, {"batch_size": 4, "grad_checkpoint": True}),
        Case("135M, 513 tokens", SMALL, {"batch_size": 1}, 513),
        Case("135M, rank 64, accumulated", SMALL, {"batch_size": 1, **ACCUMULATED, "lora_parameters": lora(64)}),
        Case("360M, 8 layers", MEDIUM, {"num_layers": 8, "batch_size": 2}),
        Case("0.5B, vocabulary 151,936", HALF, {"num_layers": 8, "batch_size": 1}),
        Case("0.5B, checkpointed", HALF, {"batch_size": 2, "grad_checkpoint": True}),
        Case("1B, 4 layers", ONE, {"num_layers": 4, "batch_size": 1}, 129),
        Case("toy, long rows", TOY, {"batch_size": 2}, 769),
        Case("toy, dropout", TOY, {"batch_size": 4, "lora_parameters": lora(8, 0.1)}),
        Case("toy, DoRA", TOY, {"batch_size": 2, "fine_tune_type": "dora"}),
        Case("toy, full", TOY, {"batch_size": 2, "fine_tune_type": "full"}, bits=None),
        Case("toy, AdamW on all of 16 bits", TOY, {"batch_size": 4, "optimizer": "adamw"}, bits=None),
        Case("deep and narrow", DEEP, {"batch_size": 2, "optimizer": "sgd"}),
        Case("deep, checkpointed", DEEP, {"batch_size": 8, "grad_checkpoint": True, "optimizer": "muon"}),
        Case("wide, output layer of its own", WIDE, {"batch_size": 4}),
    ],
    "cuda": [
        Case("135M, batch 8", SMALL, {"batch_size": 8, "lora_parameters": lora(16)}, 513),
        Case("1B, batch 4", ONE, {"batch_size": 4, "lora_parameters": lora(16)}, 1025),
        Case("3B, checkpointed", THREE, {"batch_size": 4, **RECOMPUTED, "lora_parameters": lora(16)}, 1025),
        Case("7B, 2048 × 1", SEVEN, {"batch_size": 1, "lora_parameters": lora(16)}, 2049),
        Case("7B, 512 × 1, checkpointed", SEVEN, {"batch_size": 1, **RECOMPUTED, "lora_parameters": lora(16)}, 513),
        Case("7B, 2048 × 4, checkpointed", SEVEN, {"batch_size": 4, **RECOMPUTED, "lora_parameters": lora(16)}, 2049),
        Case("7B, 512 × 1 × 2, checkpointed, in 6 GB", SEVEN, {**WITHIN_6, "lora_parameters": lora(16)}, 513),
        Case("7B, 2048 × 4, checkpointed, in 10 GB", SEVEN, {**WITHIN_10, "lora_parameters": lora(16)}, 2049),
        Case("8B, 1024 × 2, 16 layers", EIGHT, {"num_layers": 16, "batch_size": 2, "lora_parameters": lora(32)}, 1025),
        Case("8B, 4096 × 1, checkpointed", EIGHT, {"batch_size": 1, **RECOMPUTED, "lora_parameters": lora(32)}, 4097),
        Case("8B, 12000 × 1, checkpointed, in 12 GB", EIGHT, {**WITHIN_12, "lora_parameters": lora(32)}, 12001),
        Case("8B, 3000 × 1, checkpointed, in 8 GB", EIGHT, {**WITHIN_8, "lora_parameters": lora(32)}, 3001),
    ],
}  # fmt: skip
CASES["metal"] = CASES["cuda"]


def drawn(count: int, seed: int = 0) -> list[Case]:
    """Small random shapes to calibrate on, so that the table's cases stay unseen."""
    draw = random.Random(seed)  # noqa: S311
    cases = []
    for number in range(count):
        heads = draw.choice([4, 8, 16])
        kv = draw.choice([divisor for divisor in (1, 2, 4, 8) if heads % divisor == 0])
        hidden = draw.choice([256, 384, 512, 768])
        layers = draw.choice([2, 4, 6])
        shape = llama(
            hidden, layers, hidden * draw.choice([2, 3, 4]), (heads, kv), draw.choice([512, 512, 8192, 32768]),
            head_dim=draw.choice([32, 64]),
        )  # fmt: skip
        job = {
            "batch_size": draw.choice([1, 2, 4]), "grad_checkpoint": draw.random() < 0.5,
            "num_layers": draw.choice([-1, -1, layers // 2]), "lora_parameters": lora(draw.choice([4, 16])),
        }  # fmt: skip
        cases.append(Case(f"drawn {number}", shape, job, draw.choice([129, 257, 513])))
    return cases


CASES["cpu-drawn"] = drawn(20)


def run_case(case: Case, backend: str, seconds: float) -> dict[str, Any]:
    """Train a case for two windows in a process of its own; its peak beside the estimate."""
    spec = _spec(case)
    with tempfile.TemporaryDirectory(prefix="qlorad-memory-") as temporary:
        folder = Path(temporary)
        config = make_model(folder / "model", case)
        make_rows(folder / "data", case.length)
        job = {**case.job, **spec, "model": str(folder / "model"), "data": str(folder / "data")}
        if not backend.startswith("cpu") and "memory" not in job:
            # Room for what the estimate says and no more, which training would use to be faster.
            need = estimate_of({"case": asdict(case), "backend": backend, "config": config, "dequantized": False})
            job["memory"] = {"limit_gb": round(1.3 * need.total / GIGA, 2)}
        (folder / "job.json").write_text(json.dumps(job))
        events = list(_train(folder, backend, seconds))
    done = [event for event in events if event.get("event") == "training.report"]
    trouble = [event.get("what") for event in events if "what" in event]
    loaded = next((event for event in events if event.get("event") == "model.loaded"), {})
    row: dict[str, Any] = {"case": asdict(case), "backend": backend.partition("-")[0], "config": config}
    row |= {"dequantized": bool(loaded.get("dequantized")), "loaded_gb": loaded.get("memory_gb")}
    row["kept"] = any(event.get("kept") for event in events if event.get("event") == "products.chosen")
    if not done:
        return row | {"failed": trouble[-1] if trouble else "no report"}
    row |= {"peak_gb": max(event["peak_gb"] for event in done), "tokens_per_second": done[-1]["tokens_per_second"]}
    return row | compared(row)


def compared(row: dict[str, Any]) -> dict[str, Any]:
    """The estimate for a row with the constants of now, by parts, and its error."""
    found = estimate_of(row)
    return {
        "estimate_gb": round(found.total / GIGA, 3),
        "error": round(found.total / GIGA / row["peak_gb"] - 1, 3),
        "moment": found.moment,
        "parts_gb": {name: round(size / GIGA, 3) for name, size in found.parts.items()},
    }


def estimate_of(row: dict[str, Any], backend: Backend | None = None) -> Estimate:
    """The estimate for a measured row, with the constants of now or others."""
    case = Case(**row["case"])
    spec = JobSpec(**{**case.job, **_spec(case)})
    batch = Batch.widest(spec, rows=64, longest=case.length, targets=case.length - 1, backend=row["backend"])
    constants = backend or BACKENDS[row["backend"]]
    shape, kept = ModelShape.of(row["config"]), row.get("kept", False)
    return estimate(spec, shape, batch, constants, dequantized=row["dequantized"], kept=kept)


def calibrated(rows: Sequence[dict[str, Any]], start: Backend) -> Backend:
    """Constants for which the errors over the rows are smallest, by a search along one constant at a time.

    What a layer keeps on the CPU was counted in the graph and stays as it is; a GPU's compiler decides for itself.
    """
    best, least = start, _error(rows, start)
    for step in (0.5, 0.2, 0.1):
        improved = True
        while improved:
            improved = False
            for candidate in _neighbours(best, step):
                error = _error(rows, candidate)
                if error < least - 1e-4:
                    best, least, improved = candidate, error, True
    return best


def _neighbours(backend: Backend, step: float) -> Iterator[Backend]:
    for sign in (step, -step):
        for name in ("hidden", "query", "key", "mlp", "scores"):
            changed = round(max(0.0, getattr(backend.working, name) + 4 * sign), 2)
            yield replace(backend, working=replace(backend.working, **{name: changed}))
            if backend.name != "cpu" and name != "scores":
                changed = round(max(0.0, getattr(backend.kept, name) + 2 * sign), 2)
                yield replace(backend, kept=replace(backend.kept, **{name: changed}))
        yield replace(backend, logits=round(max(0.5, backend.logits + 2 * sign), 2))
        yield replace(backend, again=round(max(0.0, backend.again + sign), 2))
        yield replace(backend, chunks=round(max(1.0, backend.chunks + 2 * sign), 2))
        if backend.ahead:
            yield replace(backend, ahead=max(0, backend.ahead + int(sign * 2**29)))


def _error(rows: Sequence[dict[str, Any]], backend: Backend) -> float:
    errors = [abs(estimate_of(row, backend).total / GIGA / row["peak_gb"] - 1) for row in rows]
    return max(errors) + sum(errors) / len(errors)


def _spec(case: Case) -> dict[str, Any]:
    window = case.job.get("grad_accumulation_steps", 1)
    return {
        "num_layers": case.job.get("num_layers", -1), "iters": 3 * window, "steps_per_report": 1, "samples": 0,
        "steps_per_eval": 1000, "save_every": 1000, "val_batches": 1, "max_seq_length": case.length,
    }  # fmt: skip


def _train(folder: Path, backend: str, seconds: float) -> Iterator[dict[str, Any]]:
    environment = {
        **os.environ, "QLORAD_HOME": str(folder / "home"), "QLORAD_GPU_LOCK": str(folder / "lock"),
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    if backend.startswith("cpu"):
        environment |= blas.training_environment("auto", None)
    command = [sys.executable, "-m", "qlora_engine", str(folder / "job.json"), "--run", str(folder / "run"), "--json"]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=seconds, check=False, cwd=folder
        )
        output, end = done.stdout, [] if done.returncode == 0 else [{"what": done.stderr[-500:] or done.returncode}]
    except subprocess.TimeoutExpired as late:
        output = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        end = [{"what": f"not done in {seconds:g} s"}]
    yield from (json.loads(line) for line in output.splitlines() if line.startswith("{"))
    yield from end


def make_model(folder: Path, case: Case) -> dict[str, Any]:
    """Write a model folder with random weights, one tensor after the other; returns its config."""
    import mlx.core as mx  # noqa: PLC0415  # comparing results needs no mlx

    folder.mkdir(parents=True)
    config = dict(case.model)
    if case.bits:
        config["quantization"] = {"group_size": 64, "bits": case.bits}
    arrays: dict[str, mx.array] = {}
    for name, shape in _tensors(ModelShape.of(config)):
        if len(shape) == 1:
            arrays[f"{name}.weight"] = mx.ones(shape, mx.bfloat16)
        elif case.bits is None:
            arrays[f"{name}.weight"] = 0.02 * mx.random.normal(shape, mx.bfloat16)
        else:
            rows, columns = shape
            arrays[f"{name}.weight"] = mx.random.randint(0, 2**31, (rows, columns * case.bits // 32)).astype(mx.uint32)
            arrays[f"{name}.scales"] = mx.full((rows, columns // 64), 0.003, mx.bfloat16)
            arrays[f"{name}.biases"] = mx.full((rows, columns // 64), -0.02, mx.bfloat16)
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)
    (folder / "config.json").write_text(json.dumps(config))
    make_tokenizer(folder)
    return config


def _tensors(shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of a llama, by name and shape."""
    yield "model.embed_tokens", (shape.vocabulary, shape.hidden)
    yield "model.norm", (shape.hidden,)
    if not shape.tied:
        yield "lm_head", (shape.vocabulary, shape.hidden)
    for layer in range(shape.layers):
        for linear in shape.linears:
            yield f"model.layers.{layer}.{linear.name}", (linear.outputs, linear.inputs)
        yield f"model.layers.{layer}.input_layernorm", (shape.hidden,)
        yield f"model.layers.{layer}.post_attention_layernorm", (shape.hidden,)


def make_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer, in which a text of n letters has n tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415

    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def make_rows(folder: Path, length: int) -> None:
    """64 rows to train on and 2 to validate, each of `length` tokens, the end-of-text token included."""
    folder.mkdir()
    line = json.dumps({"text": "q" * (length - 1)}) + "\n"
    (folder / "train.jsonl").write_text(64 * line)
    (folder / "valid.jsonl").write_text(2 * line)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the comparison, the worst last."""
    for row in sorted(rows, key=lambda row: abs(row["error"])):
        parts = ", ".join(f"{name} {size:.2f}" for name, size in row["parts_gb"].items() if size >= 0.005)
        print(
            f"{row['error']:+7.1%}  {row['backend']:5} {row['case']['name']:32} measured {row['peak_gb']:7.3f}  "
            f"estimated {row['estimate_gb']:7.3f} GB ({row['moment']}: {parts})"
        )


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """The comparison as a table in Markdown."""
    lines = ["| backend | case | measured GB | estimated GB | error |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['backend']} | {row['case']['name']} | {row['peak_gb']:.2f} | {row['estimate_gb']:.2f} "
        f"| {row['error']:+.0%} |"
        for row in rows
    ]
    return "\n".join(lines)


def write_page(rows: Sequence[dict[str, Any]]) -> None:
    """Put the table between the marks of docs/memory.md."""
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{as_table(rows)}\n\n{MARKS[1]}{after}")


def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Measured rows, compared with the constants of now."""
    rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return [row | compared(row) for row in rows if "peak_gb" in row]


def main() -> None:
    """Measure, or compare what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend-cases", choices=CASES, help="measure these cases")
    parser.add_argument("--only", help="those whose name contains this")
    parser.add_argument("--out", type=Path, help="append the lines to this file, too")
    parser.add_argument("--seconds", type=float, default=300.0, help="time limit of a case")
    parser.add_argument("--fit", type=Path, nargs="+", metavar="FILE", help="compare the estimates of now")
    parser.add_argument("--calibrate", nargs="+", metavar=("BACKEND", "FILE"), help="search for better constants")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="write the table into docs/memory.md")
    chosen = parser.parse_args()
    for case in CASES[chosen.backend_cases] if chosen.backend_cases else []:
        if chosen.only and chosen.only not in case.name:
            continue
        line = json.dumps(run_case(case, chosen.backend_cases, chosen.seconds))
        print(line, flush=True)
        if chosen.out:
            with chosen.out.open("a") as file:
                file.write(line + "\n")
    if chosen.fit:
        show(read(chosen.fit))
    if chosen.calibrate:
        name, *files = chosen.calibrate
        rows = [row for row in read([Path(file) for file in files]) if row["backend"] == name]
        print(calibrated(rows, BACKENDS[name]))
    if chosen.table:
        write_page(read(chosen.table))


if __name__ == "__main__":
    main()
