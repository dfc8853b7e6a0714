"""How fast this device multiplies matrices of a job's shapes, measured for a moment while nothing trains on it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import mlx.core as mx

from qlora_engine.job import lock
from qlora_engine.job.preflight.batch import Batch
from qlora_engine.job.preflight.duration import EFFICIENCY
from qlora_engine.job.preflight.shape import ModelShape
from qlora_engine.training.device import on_cpu

MEASURE_SECONDS = 0.3
MOST_POSITIONS = 4096  # more do not make a product faster


def measured_speed(shape: ModelShape, batch: Batch, gpu_lock: Path) -> float | None:
    """Floating-point operations a second that training will reach; None while something trains.

    Args:
        gpu_lock: held meanwhile, as by every use of the GPU.
    """
    try:
        with lock.held(gpu_lock, {"pid": os.getpid(), "job": "qlora validate"}):
            return EFFICIENCY * _products(min(batch.positions, MOST_POSITIONS), shape)
    except lock.LockHeld:
        return None


def _products(positions: int, shape: ModelShape) -> float:
    """Operations a second of the widest product of a layer."""
    kind = mx.float32 if on_cpu() else mx.bfloat16
    widest = max(shape.linears, key=lambda linear: linear.inputs * linear.outputs)
    x = mx.ones((positions, widest.inputs), kind)
    w = mx.ones((widest.outputs, widest.inputs), kind)
    mx.eval(x, w, x @ w.T)  # the first compiles kernels
    started, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < MEASURE_SECONDS:
        mx.eval(x @ w.T)
        done += 1
    return 2.0 * positions * widest.inputs * widest.outputs * done / spent
