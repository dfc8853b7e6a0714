"""What a training process needs in its environment, since MLX reads it when it is imported."""

from __future__ import annotations

import os

from qlora_engine import blas
from qlora_engine.job.folder import RunFolder

CUDA_BUILDS = ("mlx-cuda-13", "mlx-cuda-12")
# MLX's CUDA backend runs ahead by up to ten buffers of operations, and what they hold stays held. With its own
# sizes a 7B base at 512 tokens, checkpointed, peaked at 8.2 GB on an H100; with these at 5.5 GB, 3% slower.
RUN_AHEAD = {"MLX_MAX_OPS_PER_BUFFER": "10", "MLX_MAX_MB_PER_BUFFER": "100"}


def environment(cpu_blas: str, run: RunFolder | None) -> dict[str, str]:
    """The variables that a training process needs beside those of its parent.

    Args:
        cpu_blas: `auto`, `off`, or the path of a library (QLORAD_CPU_BLAS).
        run: a run whose first start recorded its BLAS, which a resumed run takes again.

    Raises:
        BadSetting: the library does not exist.
    """
    return run_ahead() | blas.training_environment(cpu_blas, run)


def run_ahead() -> dict[str, str]:
    """How far MLX's CUDA backend may run ahead; nothing on other backends, and what a person set stays."""
    if not any(blas.installed(build) for build in CUDA_BUILDS):
        return {}
    return {name: os.environ.get(name, value) for name, value in RUN_AHEAD.items()}
