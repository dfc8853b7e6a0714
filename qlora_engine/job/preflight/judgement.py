"""What an estimate means for a job: it fits, it may not, or it cannot; and the sentences that say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qlora_engine.job.errors import JobRejected
from qlora_engine.job.preflight.backends import BACKENDS, Name
from qlora_engine.job.preflight.batch import Batch
from qlora_engine.job.preflight.changes import smallest_change
from qlora_engine.job.preflight.memory import GIGA, Estimate, estimate
from qlora_engine.job.preflight.shape import ModelShape
from qlora_engine.job.spec import JobSpec

# The estimate is within 15% of what was measured, so that beyond it, it is sure.
SURE = 0.15
ROUGH = 0.40


@dataclass(frozen=True)
class Machine:
    """Where a job will train.

    Attributes:
        backend: of MLX.
        limit: bytes that training may use.
        source: who says so.
        free: bytes of memory that training will find free, which decides whether the CPU holds weights in float32.
    """

    backend: Name
    limit: int
    source: str
    free: int


@dataclass(frozen=True)
class Fit:
    """An estimate and what a person should know of it."""

    estimate: Estimate
    warnings: tuple[str, ...]


def fit(spec: JobSpec, shape: ModelShape, batch: Batch, machine: Machine, ladder: Sequence[tuple[str, Batch]]) -> Fit:
    """Judge a job's need for memory.

    Args:
        ladder: what training will step down to by itself when memory runs out, in order, each with its words.

    Raises:
        JobRejected: it surely does not fit, in no way that the job allows; with the smallest change that would.
    """
    backend, dequantized = BACKENDS[machine.backend], is_dequantized(spec, shape, machine)
    found = estimate(spec, shape, batch, backend, dequantized=dequantized)
    rough = (f"The memory estimate for this model is rough: {found.rough}.",) if found.rough else ()
    doubt = ROUGH if found.rough else SURE
    if found.total * (1 + doubt) <= machine.limit:
        return Fit(found, rough)
    change = smallest_change(spec, shape, batch, backend, dequantized=dequantized, limit=machine.limit)
    advice = f" {change}" if change else ""
    need = f"about {found.total / GIGA:.1f} GB, and {machine.limit / GIGA:.1f} GB may be used ({machine.source})"
    if found.total * (1 - doubt) <= machine.limit:
        return Fit(found, (*rough, f"Memory may not be enough: the job needs {need}.{advice}"))
    for words, lower in ladder:
        if estimate(spec, shape, lower, backend, dequantized=dequantized).total * (1 - doubt) <= machine.limit:
            steps = f"Memory is not enough as written: the job needs {need}. Training will step down: {words}."
            return Fit(found, (*rough, steps + advice))
    raise JobRejected(f"The job does not fit into memory: it needs {need}.", where="memory", remedy=advice.strip())


def is_dequantized(spec: JobSpec, shape: ModelShape, machine: Machine) -> bool:
    """Whether the CPU will hold quantized weights as float32: where they take less than half of what is free."""
    return machine.backend == "cpu" and spec.fine_tune_type != "full" and 4 * shape.parameters < machine.free / 2
