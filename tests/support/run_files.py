"""Run folders written by hand, with everything that can happen to a run, for what reads them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from qlora_engine.job.folder import RunFolder
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.vocabulary import EVENTS

START = datetime(2026, 11, 22, 14, 35, 1, tzinfo=UTC)


class RunWriter:
    """Writes the files of a run folder as the programs do; events carry a time that goes on."""

    def __init__(self, folder: Path, **spec: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.run = RunFolder(folder)
        self.now = START
        self.attempt = 1
        keys = {"name": "sql-assistant", "model": "smollm2", **spec}
        job = {
            "format": 1,
            "spec": JobSpec(**keys).model_dump(mode="json"),
            "model_path": "/models/smollm2",
            "data": {"train": {"path": "/data/train.jsonl", "rows": 400, "format": "completion"}},
        }
        self.run.spec.write_text(json.dumps(job))

    def event(self, name: str, /, *, seconds: float = 1.0, **fields: Any) -> None:
        """Add an event; fields of its kind that are not given are null."""
        self._line(self.run.events, name, seconds, fields)

    def step(self, step: int, loss: float | None, *, tokens: int = 100, **fields: Any) -> None:
        """Add a micro-batch to the metrics."""
        self._line(self.run.metrics, "training.step", 0.5, {"step": step, "loss": loss, "tokens": tokens, **fields})

    def _line(self, path: Path, name: str, seconds: float, fields: Mapping[str, Any]) -> None:
        self.now += timedelta(seconds=seconds)
        kind = EVENTS[name]
        head = {
            "ts": self.now.isoformat(timespec="milliseconds"), "level": kind.level, "event": name,
            "job": self.run.id, "attempt": self.attempt,
        }  # fmt: skip
        with path.open("a") as file:
            file.write(json.dumps({**head, **dict.fromkeys(kind.fields), **fields}) + "\n")


def write_eventful_run(folder: Path, steps: int = 2000, seed: int = 0) -> RunFolder:
    """A run with two attempts, a rollback, every event of note, and sample answers."""
    writer, draw = (
        RunWriter(folder, iters=steps, mask_prompt=True, batch_size=2, learning_rate=5e-4),
        random.Random(seed),
    )
    _begin(writer, steps)
    _samples(writer, "before", "I can help you with that! Which table do you mean?")
    writer.event("validation", step=0, split="valid", loss=2.9, perplexity=18.2, tokens=4000, rows=50, seconds=3.0)
    _train(writer, draw, 1, steps // 2 + 30, steps)
    writer.event("training.stalled", phase="train", step=steps // 2 + 30, seconds=95.0, allowed=60.0,
                 stacks="Thread 0x7f (most recent call first):\n  File \"loop.py\", line 80")  # fmt: skip
    writer.event("job.exited", signal="SIGKILL", outcome="crashed", seconds=5)
    writer.attempt = 2
    _begin(writer, steps, seconds=3600)
    writer.event("environment.changed", name="versions", then={"mlx": "0.32.4"}, now={"mlx": "0.32.5"})
    writer.event("checkpoint.damaged", path="checkpoints/step-001000", what="adapters.safetensors: wrong hash")
    writer.event("training.resumed", step=steps // 2, path="checkpoints/step-000900")
    _train(writer, draw, steps // 2 + 1, steps * 7 // 10, steps)
    for index in range(5):
        step = steps * 7 // 10 + index + 1
        writer.step(step, None if index else 3e8, memory_gb=1.1, peak_gb=1.9)
        writer.event("guard.dropped", step=step, place="loss", rows=[3, 17], value="nan", in_a_row=index + 1)
    writer.event("guard.rolled_back", step=step, to_step=steps * 6 // 10, skipped=[step], rate_factor=0.5, rollbacks=1)
    _train(writer, draw, steps * 6 // 10 + 1, steps * 9 // 10, steps)
    writer.event("ladder.rung", rung="recompute", change="layers are computed again in the backward pass",
                 reason="[metal::malloc] out of memory", effective_batch=8)  # fmt: skip
    _train(writer, draw, steps * 9 // 10 + 1, steps, steps)
    writer.event("training.early_stopped", step=steps, best_loss=0.81, best_step=steps * 9 // 10)
    _samples(writer, "after", "SELECT name FROM singers WHERE age > 30")
    writer.event("validation", step=steps, split="test", loss=0.9, perplexity=2.46, tokens=4000, rows=50, seconds=3.0)
    (writer.run.adapters).mkdir()
    (writer.run.adapters / "adapters.safetensors").touch()
    writer.event("training.done", step=steps, seconds=900, tokens=100 * steps, loss_before=2.9, loss_after=0.83,
                 kept="best", kept_step=steps * 9 // 10, adapters=str(writer.run.adapters))  # fmt: skip
    return writer.run


def _begin(writer: RunWriter, steps: int, seconds: float = 1.0) -> None:
    versions = {"python": "3.11.7", "mlx": "0.32.4", "mlx_lm": "0.32.2", "qlorad": "0.1.0"}
    writer.event("training.started", seconds=seconds, pid=1, backend="metal", device="Apple M3 Pro", versions=versions)
    writer.event("memory.limits", limit_gb=2.5, wired_gb=2.4, cache_gb=0.5, device_gb=18.0, source="the job file")
    writer.event("model.loaded", model="/models/smollm2", model_type="llama", bits=4, parameters=134_515_008,
                 trainable=1_200_000, memory_gb=0.56, quantized_on_load=False, dequantized=False)  # fmt: skip
    writer.event("data.loaded", format="completion", train=400, valid=50, test=50, tokens=41_000, supervised=20_000,
                 truncated=3, lost_share=0.012, nothing_to_learn=0, steps=steps, updates=steps // 2)  # fmt: skip


def _train(writer: RunWriter, draw: random.Random, first: int, last: int, steps: int) -> None:
    every = max(1, steps // 100)
    for step in range(first, last + 1):
        done = step / steps
        loss = 0.8 + 2.1 * math.exp(-5 * done) + draw.gauss(0, 0.18)
        memory = {"memory_gb": 1.1 + 0.02 * draw.random(), "peak_gb": 1.6 + 0.3 * done,
                  "cache_gb": 0.3 + 0.1 * draw.random(), "process_gb": 2.2 + 0.05 * done}  # fmt: skip
        tokens = draw.randrange(40, 220)
        writer.step(step, loss, tokens=tokens, gradient_norm=0.4 + 8 * math.exp(-9 * done) * draw.random(), **memory)
        if step % every == 0:
            rate = 5e-4 * min(1, done * 10) * 0.5 * (1 + math.cos(math.pi * done))
            writer.event("training.report", step=step, steps=steps, update=step // 2, loss=loss, learning_rate=rate,
                         tokens=100 * step, gradient_norm=0.5, tokens_per_second=850 + draw.gauss(0, 25),
                         steps_per_second=2.0)  # fmt: skip
        if step % (10 * every) == 0:
            held_out = 0.85 + 2.05 * math.exp(-4.5 * done) + (0.25 * (done - 0.9) if done > 0.9 else 0)
            writer.event("validation", step=step, split="valid", loss=held_out, perplexity=math.exp(held_out),
                         tokens=4000, rows=50, seconds=3.0)  # fmt: skip


def _samples(writer: RunWriter, when: str, answer: str) -> None:
    asked = {
        "Table singers(id, name, age).\nWhich singers are older than 30?": "SELECT name FROM singers WHERE age > 30",
        "Table concerts(id, year).\nHow many were there in 2014?": "SELECT COUNT(*) FROM concerts WHERE year = 2014",
    }
    for prompt, expected in asked.items():
        writer.event("sample.answered", when=when, prompt=prompt, answer=answer, expected=expected)
