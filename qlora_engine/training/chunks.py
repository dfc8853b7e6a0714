"""A part of a model that maps each position by itself, over a chunk of the positions at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map, tree_map_with_path

from qlora_engine.training.tree import Tree, flat


def in_chunks(
    compute: Callable[[nn.Module, mx.array], mx.array], module: nn.Module, x: mx.array, size: int
) -> mx.array:
    """compute(module, x), whose inner arrays exist for `size` positions at a time, forward and backward.

    Of the whole only x is kept. Within a layer that is computed again this costs no second forward pass: what the
    layer's own made would be thrown away, and is never asked for.

    Args:
        compute: maps (N, D) to (N, E), each row by itself.
        x: (..., D).
    """
    parameters = module.trainable_parameters()
    names: Tree = tree_map_with_path(lambda path, _: path, parameters)
    chunks = [slice(start, start + size) for start in range(0, x.size // x.shape[-1], size)]

    def part(x: mx.array, *leaves: mx.array) -> mx.array:
        arrays = dict(zip(flat(parameters), leaves, strict=True))
        module.update(tree_map(lambda path: arrays[path], names))
        return compute(module, x)

    @mx.custom_function
    def whole(x: mx.array, *leaves: mx.array) -> mx.array:
        made: list[mx.array] = []
        for these in chunks:
            # Each waits for the one before, or all would be computed at once.
            rows = mx.depends([x[these]], [made[-1]])[0] if made else x[these]
            made.append(part(rows, *leaves))
        return mx.concatenate(made)

    @whole.vjp
    def gradients(primals: tuple[mx.array, ...], cotangent: mx.array, _output: mx.array) -> tuple[mx.array, ...]:
        x, *leaves = primals
        of_x: list[mx.array] = []
        sums = [mx.zeros(leaf.shape, mx.float32) for leaf in leaves]
        for these in chunks:
            rows = [x[these], cotangent[these]]
            if of_x:
                rows = mx.depends(rows, [of_x[-1], *sums])
            _, (of_rows, *of_leaves) = mx.vjp(part, [rows[0], *leaves], [rows[1]])
            of_x.append(of_rows)
            sums = [total + gradient.astype(mx.float32) for total, gradient in zip(sums, of_leaves, strict=True)]
        return mx.concatenate(of_x), *(s.astype(leaf.dtype) for s, leaf in zip(sums, leaves, strict=True))

    result: Any = whole(x.reshape(-1, x.shape[-1]), *flat(parameters).values())
    module.update(parameters)
    y: mx.array = result
    return y.reshape(*x.shape[:-1], y.shape[-1])
