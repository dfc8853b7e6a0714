"""What MLX computes on here, as one line of JSON, for programs that must not import it."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from typing import Any

import mlx.core as mx

from qlora_engine import blas
from qlora_engine.training.device import on_cpu, on_cuda


def about() -> dict[str, Any]:
    """Version, backend, memory in bytes, and the BLAS that this process was started with.

    A sum is computed, too: a GPU that is there and cannot be used says so only then.
    """
    total = mx.arange(8).sum()
    mx.eval(total)
    device = {} if on_cpu() else mx.device_info()
    return {
        "version": importlib.metadata.version("mlx"),
        "backend": "cpu" if on_cpu() else "cuda" if on_cuda() else "metal",
        "name": str(device.get("device_name", "")),
        "works": total.item() == 28,
        "memory": _count(device.get("memory_size") or device.get("total_memory")),
        "recommended": _count(device.get("max_recommended_working_set_size")),
        "blas": blas.as_json(blas.loaded()),
    }


def _count(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and value else None


if __name__ == "__main__":
    sys.stdout.write(json.dumps(about()) + "\n")
