"""What fusing needs of memory and disk, by arithmetic, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_engine.job.errors import JobRejected
from qlora_engine.job.fuse_spec import FuseSpec
from qlora_engine.job.preflight.judgement import ROUGH, SURE, Machine
from qlora_engine.job.preflight.memory import F32, GIGA, trained_layers, trained_parameters, weight_bytes
from qlora_engine.job.preflight.shape import ModelShape
from qlora_engine.job.spec import JobSpec

HALF = 2  # bytes
# Of the largest matrix at the moment when it is fused: unpacked, the adapters' product in float32 and in the weight's
# type, the sum.
ONE_MATRIX = 2 * HALF + F32 + HALF


@dataclass(frozen=True)
class FuseNeed:
    """What it takes.

    Attributes:
        parts: bytes of memory at the fullest moment, by what they are for.
        result: bytes on the disk.
        doubt: by how much the sum may be wrong.
    """

    parts: dict[str, float]
    result: int
    doubt: float

    @property
    def memory(self) -> float:
        """Bytes at the fullest moment."""
        return sum(self.parts.values())


def fuse_need(spec: FuseSpec, trained: JobSpec, shape: ModelShape) -> FuseNeed:
    """The need of a job that fuses what another was trained with.

    Matrices are unpacked one after another, and each makes way for its result, so both forms of the model are never
    there at once.
    """
    held = weight_bytes(trained, shape, dequantized=False)
    result = HALF * shape.parameters if spec.in_16_bits else held
    adapters = F32 * trained_layers(trained, shape) * trained_parameters(trained, shape)
    parts = {"model": max(held, result), "one matrix": float(ONE_MATRIX * shape.largest), "adapters": float(adapters)}
    return FuseNeed(parts, int(result), ROUGH if shape.rough else SURE)


def judge(need: FuseNeed, spec: FuseSpec, machine: Machine, free: int) -> tuple[str, ...]:
    """What a person should know before it runs.

    Args:
        free: bytes on the disk that the result will lie on.

    Raises:
        JobRejected: it surely does not fit into memory.
    """
    warnings = []
    said = f"about {need.memory / GIGA:.1f} GB, and {machine.limit / GIGA:.1f} GB may be used ({machine.source})"
    if need.memory * (1 - need.doubt) > machine.limit:
        raise JobRejected(
            f"Fusing does not fit into memory: it needs {said}.",
            where="dequantize" if spec.dequantize else "export" if spec.export else "fuse",
            remedy="Without `dequantize` the model stays as small as its base."
            if spec.dequantize and not spec.export
            else "Fuse it on a machine with more memory: the base model and the run's adapters/ are all that it takes.",
        )
    if need.memory * (1 + need.doubt) > machine.limit:
        warnings.append(f"Memory may not be enough: fusing needs {said}.")
    if free < need.result:
        warnings.append(
            f"The disk has {free / GIGA:.1f} GB free, and the result takes {need.result / GIGA:.1f} GB: "
            "fusing waits until there is room."
        )
    return tuple(warnings)
