"""Where the GPU's time of a training step goes, kernel by kernel, on a CUDA device: one line of JSON.

    python benchmarks/kernels.py --shape mistral-7b --width 2048 --rows 4 --recompute --product dequantized

Takes the arguments of `step.py`. PyTorch's profiler records the kernels of the whole process, MLX's too; PyTorch is
used for nothing else, and is no dependency of the project.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import defaultdict
from typing import Any

import mlx.core as mx
from step import arguments_of, prepared
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

STEPS = 3
LONGEST_NAME = 110


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds and launches a step of every kernel, the longest first."""
    step, targets = prepared(arguments)

    def one() -> None:
        step.micro_batch(targets, mx.random.key(0))
        step.update()

    for _ in range(6):  # compiles
        one()
    started = time.perf_counter()
    for _ in range(STEPS):
        one()
    plain = (time.perf_counter() - started) / STEPS
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(STEPS):
            one()
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    spans = []
    for event in recorded.events():
        if event.device_type != DeviceType.CUDA:
            continue  # what the processor does to start it
        time_range = event.time_range
        spans.append((time_range.start, time_range.end))
        entry = spent[re.sub(r"\s+", " ", event.name)[:LONGEST_NAME]]
        entry[0] += (time_range.end - time_range.start) / 1e3 / STEPS
        entry[1] += 1 / STEPS
    kernels = sorted(([round(ms, 3), round(count), name] for name, (ms, count) in spent.items()), reverse=True)
    return {
        **vars(arguments), "step_ms": round(1e3 * plain, 1), "busy_ms": round(_covered(spans) / 1e3 / STEPS, 1),
        "tokens_per_s": round(targets.count / plain), "peak_gb": round(mx.get_peak_memory() / 1e9, 2),
        "launches": sum(count for _, count, _ in kernels), "by_kernel": kernels,
    }  # fmt: skip


def _covered(spans: list[tuple[float, float]]) -> float:
    """How long at least one kernel ran, in the unit of the spans."""
    covered, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered


if __name__ == "__main__":
    print(json.dumps(measure(arguments_of(__doc__).parse_args())))
