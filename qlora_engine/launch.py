"""What a training process needs in its environment, since MLX reads it when it is imported."""

from __future__ import annotations

from qlora_engine import blas, run_ahead
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.resolved import AnyResolved

CUDA_BUILDS = ("mlx-cuda-13", "mlx-cuda-12")


def environment(
    cpu_blas: str, run: RunFolder | None, job: AnyResolved | None = None, memory_share: float = 1.0
) -> dict[str, str]:
    """The variables that a process which computes needs beside those of its parent.

    Args:
        cpu_blas: `auto`, `off`, or the path of a library (QLORAD_CPU_BLAS).
        run: a run whose first start recorded its BLAS, which a resumed run takes again.
        job: that it trains, if it trains one.
        memory_share: of the device's memory, how much any job may use.

    Raises:
        BadSetting: the library does not exist.
    """
    on_cuda = any(blas.installed(build) for build in CUDA_BUILDS)
    ahead = run_ahead.variables(job, memory_share) if on_cuda else {}
    return ahead | blas.training_environment(cpu_blas, run)


def training_environment(cpu_blas: str, run: RunFolder, memory_share: float) -> dict[str, str]:
    """The same for the process that trains a run.

    Raises:
        BadSetting: as above.
    """
    return environment(cpu_blas, run, run_ahead.job_of(run), memory_share)
