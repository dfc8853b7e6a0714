"""What a training process needs in its environment, since MLX reads it when it is imported."""

from __future__ import annotations

from qlora_engine import blas, run_ahead
from qlora_engine.job.folder import RunFolder

CUDA_BUILDS = ("mlx-cuda-13", "mlx-cuda-12")


def environment(cpu_blas: str, run: RunFolder | None) -> dict[str, str]:
    """The variables that a process which computes needs beside those of its parent.

    Args:
        cpu_blas: `auto`, `off`, or the path of a library (QLORAD_CPU_BLAS).
        run: a run whose first start recorded its BLAS, which a resumed run takes again.

    Raises:
        BadSetting: the library does not exist.
    """
    return (run_ahead.variables(None) if on_cuda() else {}) | blas.training_environment(cpu_blas, run)


def training_environment(cpu_blas: str, run: RunFolder, memory_share: float) -> dict[str, str]:
    """The same for the process that trains a run.

    Args:
        memory_share: of the device's memory, how much any job may use.

    Raises:
        BadSetting: as above.
    """
    found = environment(cpu_blas, run)
    return found | run_ahead.variables(run_ahead.job_of(run), memory_share) if on_cuda() else found


def on_cuda() -> bool:
    """Whether MLX's CUDA build is installed here."""
    return any(blas.installed(build) for build in CUDA_BUILDS)
