"""What kernels of our own compute of a model's adapters, beside what MLX computes there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import mlx.core as mx
from mlx import nn

from qlora_engine.training import join_kernel
from qlora_engine.training.adapter_products import UPRIGHT, ByKernels, Matrices, Products
from qlora_engine.training.cuda import Compared, Pair, has_tensor_cores
from qlora_engine.training.lowrank import LowRank
from qlora_engine.training.siblings import Siblings, groups_of

MOST = 1 << 27  # numbers of an array to measure with: many rows of a whole vocabulary would take more than a step does


def pair_of_products(model: nn.Module, rows: int, kind: mx.Dtype) -> Pair | None:
    """The kernels for the adapters of the first layer that has some; None where nothing would use them."""
    found = [(members, how, ours) for members, how in _adapters(model) if (ours := _by_kernels(members)).fits]
    if not found or not has_tensor_cores():
        return None
    first: dict[tuple[int, ...], tuple[Sequence[LowRank], Products, ByKernels]] = {}
    for members, how, ours in found:
        first.setdefault((*members[0].lora_a.shape, *_widths(members)), (members, how, ours))

    def compared(ways: Sequence[tuple[Sequence[LowRank], Products]]) -> Compared:
        laid = [how.laid([_drawn(member, kind, n) for n, member in enumerate(members)]) for members, how in ways]
        mx.eval(laid)

        def all_products(x: mx.array, cotangent: mx.array) -> list[mx.array]:
            made = [x]
            for (members, how), adapter in zip(ways, laid, strict=True):
                shapes = _shapes(members, rows)
                parts = zip((x, cotangent), shapes, strict=True)
                made += _products(how, adapter, *(array[: math.prod(shape)].reshape(shape) for array, shape in parts))
            return made

        return all_products

    longest = max(math.prod(shape) for members, _, _ in first.values() for shape in _shapes(members, rows))
    x, cotangent = (mx.random.normal((longest,), key=mx.random.key(n)).astype(kind) for n in range(2))
    theirs = compared([(members, how) for members, how, _ in first.values()])
    return Pair(theirs, compared([(members, ours) for members, _, ours in first.values()]), x, cotangent)


def _shapes(members: Sequence[LowRank], rows: int) -> list[tuple[int, int]]:
    """Of the inputs and the outputs of that many positions, or fewer."""
    widths = (members[0].lora_a.shape[0], sum(_widths(members)))
    return [(min(rows, MOST // max(widths)), width) for width in widths]


def _products(how: Products, adapter: Matrices, x: mx.array, cotangent: mx.array) -> list[mx.array]:
    """The six products of an adapter, gradients of its matrices as each layer has them."""
    # Tied to what the others are made of, or it would be made once for many of them.
    (a, b) = mx.depends(list(adapter), [x])
    ready = how.ready(b)
    inner, back = how.inner(x, a), how.back(cotangent, ready)
    added = [how.add(cotangent, inner, ready), how.add_back(x, back, a)]
    upright = how.apart(*how.gradients(x, back, inner, cotangent))
    return [inner, back, *added, *(matrix for pair in upright for matrix in pair)]


def _drawn(member: LowRank, kind: mx.Dtype, seed: int) -> Matrices:
    """Matrices like a layer's, whose own B is zeros at first; siblings have different ones."""
    shapes = (member.lora_a.shape, member.lora_b.shape)
    a, b = (mx.random.normal(shape, scale=shape[0] ** -0.5, key=mx.random.key(seed)).astype(kind) for shape in shapes)
    return a, b


def pair_of_joining(model: nn.Module, _rows: int, kind: mx.Dtype) -> Pair | None:
    """The kernel that joins the gradients of all A matrices; None where nothing would use it."""
    sizes = [sum(member.lora_a.size for member in members) for members, _ in _adapters(model)]
    if not sizes or not join_kernel.can_join(sizes):
        return None
    starts = list(itertools.accumulate(sizes, initial=0))

    def compared(join: Callable[[list[mx.array]], mx.array]) -> Compared:
        def joined(x: mx.array, _cotangent: mx.array) -> list[mx.array]:
            return [x, join([x[start:end] for start, end in itertools.pairwise(starts)])]

        return joined

    x = mx.random.normal((starts[-1],), key=mx.random.key(0)).astype(kind)
    theirs = compared(lambda arrays: mx.concatenate(arrays).astype(mx.float32))
    return Pair(theirs, compared(join_kernel.join), x, x[:1])


def use_for_products(model: nn.Module) -> int:
    """Have every adapter that can be computed by kernels of our own; how many are."""
    count = 0
    for members, _ in _adapters(model):
        ours = _by_kernels(members)
        if ours.fits:
            group = members[0].siblings
            if not isinstance(group, Siblings):
                group = Siblings(members)
                group.join()
            group.how = ours
            count += 1
    return count


def _adapters(model: nn.Module) -> list[tuple[Sequence[LowRank], Products]]:
    """Every adapter, of one layer or of siblings, and how it is computed; none of those that drop out."""
    layers = [layer for _, layer in model.named_modules() if isinstance(layer, LowRank) and not layer.has_dropout]
    alone = [([layer], UPRIGHT) for layer in layers if layer.siblings is None]
    return [*((group.members, group.how) for group in groups_of(model)), *alone]


def _by_kernels(members: Sequence[LowRank]) -> ByKernels:
    return ByKernels(members[0].lora_a.shape[1], members[0].lora_a.shape[0], _widths(members))


def _widths(members: Sequence[LowRank]) -> list[int]:
    return [member.lora_b.shape[1] for member in members]
