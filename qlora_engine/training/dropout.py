"""Dropout whose mask is a function of seed, position and layer, and of nothing else.

A stateful generator gives other masks after a resume, and `mx.checkpoint` draws new ones when it recomputes, so
that gradients belong to a network that was never evaluated. A mask from an explicit key has neither fault.
"""

from __future__ import annotations

import mlx.core as mx
from mlx import nn


class DropoutKey:
    """Holds the key of the micro-batch under way; one for all layers of a model."""

    def __init__(self) -> None:
        self.key = mx.random.key(0)


class KeyedDropout(nn.Module):
    """Zeroes each element with probability `p` and scales the rest by 1 / (1 - p); the identity in evaluation.

    Args:
        p: probability, in (0, 1).
        layer: a number that no other dropout of the model has.
        source: gives the key of the micro-batch.
    """

    def __init__(self, p: float, layer: int, source: DropoutKey) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # mlx has no types here
        self._p, self._layer, self._source = p, layer, source

    def __call__(self, x: mx.array) -> mx.array:
        """Drop out elements of `x`, any shape and float type."""
        if not self.training:
            return x
        # The fold-in: one key a layer from the micro-batch's key, without splitting for all layers.
        key = self._source.key ^ mx.random.key(self._layer)
        kept = mx.random.bernoulli(1 - self._p, x.shape, key=mx.random.split(key, 1)[0])
        return mx.where(kept, x * (1 / (1 - self._p)), 0.0).astype(x.dtype)


def key_dropout(model: nn.Module, source: DropoutKey) -> int:
    """Replace every active `nn.Dropout` in `model` by a keyed one; returns how many there were."""
    found = [
        (parent, name, child)
        for _, parent in sorted(model.named_modules(), key=lambda item: item[0])
        for name, child in parent.children().items()
        if isinstance(child, nn.Dropout) and child._p_1 < 1
    ]
    for layer, (parent, name, child) in enumerate(found):
        setattr(parent, name, KeyedDropout(1 - child._p_1, layer, source))
    return len(found)


def step_key(seed: int, step: int) -> mx.array:
    """The key of one micro-batch, uint32 (2,)."""
    mixed = mx.random.split(mx.random.key(seed), 2)[0] ^ mx.random.key(step)
    return mx.random.split(mixed, 1)[0]


def slice_key(key: mx.array, index: int) -> mx.array:
    """The key of a part of a micro-batch that is computed in several; the first has the micro-batch's own."""
    return mx.random.split(key ^ mx.random.key(index), 1)[0] if index else key
