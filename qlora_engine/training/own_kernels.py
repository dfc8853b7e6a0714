"""Which parts of a model are computed by kernels of our own: where they give what MLX gives, and sooner."""

from __future__ import annotations

from collections.abc import Callable, Collection

import mlx.core as mx
from mlx import nn

from qlora_engine.training import adapter_pairs, gated, norms, rotary
from qlora_engine.training.cuda import KINDS, Pair

WORTH = 0.97  # of MLX's time
# Micro-batches of a run that is worth it: MLX compiles such kernels in every process anew, 1.2 s each beside an H200,
# and they save some hundredths of a step.
LONG_ENOUGH = 1000
PAIRS: dict[str, Callable[[nn.Module, int, mx.Dtype], Pair | None]] = {
    "rotary": rotary.pair,
    "norms": norms.pair,
    "gated": gated.pair,
    "siblings": adapter_pairs.pair_of_blocks,
    "adapters": adapter_pairs.pair_of_products,
}
Timings = dict[str, tuple[float, float]]


def measure(model: nn.Module, rows: int, kind: mx.Dtype) -> Timings:
    """Seconds that MLX's kernels and ours take for a layer, forward and backward.

    Args:
        rows: positions of a usual micro-batch.
        kind: type of activations.
    """
    return {name: pair.seconds() for name, pair in _pairs(model, PAIRS, rows, kind).items()}


def agreeing(model: nn.Module, names: Collection[str], rows: int, kind: mx.Dtype) -> list[str]:
    """Those of the names whose kernels give what MLX gives, but for rounding.

    Args:
        rows, kind: as above.
    """
    return [name for name, pair in _pairs(model, names, rows, kind).items() if pair.agree()]


def _pairs(model: nn.Module, names: Collection[str], rows: int, kind: mx.Dtype) -> dict[str, Pair]:
    if kind not in KINDS:
        return {}
    found = {name: PAIRS[name](model, rows, kind) for name in names if name in PAIRS}
    return {name: pair for name, pair in found.items() if pair is not None}


def faster(timings: Timings) -> list[str]:
    """The names of those that are worth using."""
    return [name for name, (theirs, ours) in timings.items() if ours < WORTH * theirs]


def use(model: nn.Module, names: Collection[str], longest: int) -> None:
    """Have a model use them.

    Args:
        longest: positions of a row.
    """
    if "rotary" in names:
        rotary.replace_rotary(model, longest)
    if "norms" in names:
        norms.replace_norms(model)
    if "gated" in names:
        gated.use_kernels(model)
    if "siblings" in names:
        adapter_pairs.use_for_blocks(model)
    if "adapters" in names:
        adapter_pairs.use_for_products(model)
