"""Which parts of a model are computed by kernels of our own: where they give what MLX gives, and sooner."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

import mlx.core as mx
from mlx import nn

from qlora_engine.training import adapter_pairs, gated, memory, norms, rotary
from qlora_engine.training.cuda import KINDS, Pair

WORTH = 0.97  # of MLX's time
# Micro-batches of a run that is worth it: MLX compiles such kernels in every process anew, 1.2 s each beside an H200
# and some 10 s for all, and of a short step of 60 ms they save 5 or more.
LONG_ENOUGH = 2000
PAIRS: dict[str, Callable[[nn.Module, int, mx.Dtype], Pair | None]] = {
    "rotary": rotary.pair,
    "norms": norms.pair,
    "gated": gated.pair,
    "adapters": adapter_pairs.pair_of_products,
    "gradients": adapter_pairs.pair_of_joining,
}
Timings = dict[str, tuple[float, float]]
Failed = Callable[[str, str], object]  # told a name and why
A = TypeVar("A")


def measure(model: nn.Module, rows: int, kind: mx.Dtype, failed: Failed) -> Timings:
    """Seconds that MLX's kernels and ours take for a layer, forward and backward.

    Args:
        rows: positions of a usual micro-batch.
        kind: type of activations.
        failed: is told of kernels that cannot be compiled or started here.
    """
    return dict(_of_each(model, PAIRS, (rows, kind), Pair.seconds, failed))


def agreeing(model: nn.Module, names: Collection[str], rows: int, kind: mx.Dtype, failed: Failed) -> list[str]:
    """Those of the names whose kernels give what MLX gives, but for rounding.

    Args:
        rows, kind, failed: as above.
    """
    return [name for name, agrees in _of_each(model, names, (rows, kind), Pair.agree, failed) if agrees]


def _of_each(
    model: nn.Module, names: Collection[str], about: tuple[int, mx.Dtype], question: Callable[[Pair], A], failed: Failed
) -> Iterator[tuple[str, A]]:
    """The answer of every pair that the model has."""
    if about[1] not in KINDS:
        return
    for name in names:
        pair = PAIRS[name](model, *about) if name in PAIRS else None
        if pair is None:
            continue
        try:
            yield name, question(pair)
        except RuntimeError as error:  # what a compiler or a driver refuses, MLX's kernels still do
            if memory.is_out_of_memory(error):
                raise
            failed(name, next(iter(str(error).splitlines()), type(error).__name__))


def faster(timings: Timings) -> list[str]:
    """The names of those that are worth using."""
    return [name for name, (theirs, ours) in timings.items() if ours < WORTH * theirs]


def use(model: nn.Module, names: Collection[str], longest: int) -> None:
    """Have a model use them, but for what joins gradients, which is the training step's.

    Args:
        longest: positions of a row.
    """
    if "rotary" in names:
        rotary.replace_rotary(model, longest)
    if "norms" in names:
        norms.replace_norms(model)
    if "gated" in names:
        gated.use_kernels(model)
    if "adapters" in names:
        adapter_pairs.use_for_products(model)
