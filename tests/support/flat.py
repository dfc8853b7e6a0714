"""Whether memory stays flat: over the steps of one job, and of the service over many jobs."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from qlora_engine.job.events import Event
from qlora_engine.job.states import State
from support import tiny
from support.service import Daemon

BLOCK = 100  # micro-batches whose mean is compared
MEASURED = ("process_gb", "memory_gb", "peak_gb")
OVER = 1.5  # times max_seq_length that the longest rows have, so that the widest micro-batch comes early


def mixed_job(folder: Path, *, iters: int, longest: int, **model_options: Any) -> Path:
    """A job file over rows of 8 to `longest` tokens, with dropout, accumulation, validations and checkpoints."""
    model = tiny.make_model(folder / "model", **model_options)
    data = folder / "data"
    data.mkdir()
    draw = random.Random(0)
    lengths = [int(8 * (OVER * longest / 8) ** draw.random()) for _ in range(300)]
    rows = [json.dumps({"text": "".join(draw.choices("abcdefgh ", k=length))}) for length in lengths]
    (data / "train.jsonl").write_text("\n".join(rows) + "\n")
    (data / "valid.jsonl").write_text("\n".join(rows[:20]) + "\n")
    keys = tiny.job(
        model,
        data,
        iters=iters,
        optimizer="adamw",
        lora_parameters={"rank": 8, "scale": 8.0, "dropout": 0.1},
        max_seq_length=longest,
        save_every=100,
        steps_per_eval=100,
        steps_per_report=50,
    )
    return tiny.write_job(folder / "job.json", keys)


def growth(steps: Sequence[Event], after: int) -> dict[str, float]:
    """How far memory was ever over what it was right after a step, as a share of that.

    Means over blocks of a hundred micro-batches are compared; the first block begins at `after`.

    Args:
        steps: the run's `training.step` events, none missing.
    """
    ends = range(after + BLOCK, steps[-1]["step"] + 1, BLOCK)
    blocks = [[step for step in steps if end - BLOCK < step["step"] <= end] for end in ends]
    found = {}
    for name in MEASURED:
        first, *later = [fmean(step[name] for step in block) for block in blocks]
        found[name] = round(max(later) / first - 1, 4)
    return found


def service_memory(daemon: Daemon, count: int, **keys: Any) -> list[dict[str, int]]:
    """The memory of daemon and worker after each of some jobs, bytes that no other process shares."""
    found = []
    for number in range(count):
        name = f"flat-{number}"
        daemon.drop(f"{name}.json", daemon.text(name=name, **keys))
        job = daemon.wait_for_state(name, State.DONE, State.FAILED, seconds=60)
        assert job.state is State.DONE, job.reason
        processes = {"daemon": psutil.Process(daemon.process.pid), "worker": daemon.child("worker")}
        found.append({of: process.memory_full_info().uss for of, process in processes.items()})
    return found


def growth_of_service(found: Sequence[Mapping[str, int]], after: int = 2) -> dict[str, float]:
    """How much more each holds at the end than after so many jobs, as a share of that.

    The least after one of the last three jobs counts: what is needed while an event is read is not left behind.
    """
    base, last = found[after - 1], found[max(after, len(found) - 3) :]
    return {of: round(min(each[of] for each in last) / base[of] - 1, 4) for of in base}
