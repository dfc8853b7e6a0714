"""How far MLX's CUDA backend runs ahead of the GPU: far where batches are short and memory is plenty, else not.

It hands operations over in commits and goes on until ten of them are under way, and what these hold stays held. MLX
reads the sizes of a commit when it is imported, so whoever starts a training process asks here.
"""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path

from qlora_engine.job.folder import RunFolder
from qlora_engine.job.preflight.backends import CUDA
from qlora_engine.job.preflight.batch import Batch
from qlora_engine.job.preflight.memory import ROOM, estimate
from qlora_engine.job.preflight.shape import ModelShape, ShapeUnknown
from qlora_engine.job.resolved import AnyResolved, ResolvedFuse, load_resolved

GRAPHS, OPERATIONS, MEGA = "MLX_USE_CUDA_GRAPHS", "MLX_MAX_OPS_PER_BUFFER", "MLX_MAX_MB_PER_BUFFER"
# With MLX's own sizes a 7B base at 512 tokens, checkpointed, peaked at 8.2 GB on an H100; with these at 5.5 GB, 3%
# slower.
NEAR = {GRAPHS: "1", OPERATIONS: "10", MEGA: "100"}
# Kernels are launched one by one, which takes the processor less than graphs do, and enough of them wait for the time
# in which the next batch is begun: a step of four short documents took 10% less on an H200, in 18% more memory.
FAR = {GRAPHS: "0", OPERATIONS: "50", MEGA: "1000"}
OURS = "_QLORAD_RUN_AHEAD"  # names those that we set, which a process that starts itself again may set anew
SHORT = 2048  # positions of the widest micro-batch that the job allows; those measured had 1,024 at most


def variables(job: AnyResolved | None, memory_share: float = 1.0) -> dict[str, str]:
    """What the process that trains a job needs in its environment; what a person set there stays.

    Args:
        job: None for one that is not known.
        memory_share: of the memory, how much any job may use.
    """
    wanted = FAR if job is not None and _has_room(job, memory_share) else NEAR
    before = os.environ.get(OURS, "").split()
    ours = [name for name in wanted if name in before or name not in os.environ]
    return {name: wanted[name] if name in ours else os.environ[name] for name in wanted} | {OURS: " ".join(ours)}


def job_of(run: RunFolder) -> AnyResolved | None:
    """The job of a run; None where memory ran out before, or where training will say why it cannot be read."""
    if run.ladder.exists():
        return None
    try:
        return load_resolved(run.spec)
    except (OSError, ValueError):
        return None


def _has_room(job: AnyResolved, memory_share: float) -> bool:
    """Whether batches are short, and the memory holds dequantized weights and the activations of two of them."""
    if isinstance(job, ResolvedFuse) or job.model_path is None:
        return False
    spec = job.spec
    if spec.memory.limit_gb is not None or spec.grad_checkpoint:
        return False
    longest = spec.max_seq_length
    batch = Batch.widest(spec, rows=spec.batch_size, longest=longest, targets=longest - 1, backend=CUDA.name)
    if batch.positions > SHORT:
        return False
    try:
        shape = ModelShape.of(json.loads((Path(job.model_path) / "config.json").read_bytes()))
    except (OSError, ValueError, ShapeUnknown):
        return False
    need = estimate(spec, shape, batch, CUDA, dequantized=False, kept=True)
    held = need.parts.get("activations", 0.0)
    return need.total + held <= ROOM * memory_share * _memory_of_the_gpu()


def _memory_of_the_gpu() -> int:
    """Bytes of the one that MLX computes on, by its driver; 0 where that does not say."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    device, total = ctypes.c_int(), ctypes.c_size_t()
    refused = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    )
    return 0 if refused else total.value
