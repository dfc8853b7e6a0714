"""The loss over a large vocabulary with little memory: only a block of the output layer is dequantized at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from qlora_engine.job.preflight.batch import BLOCK_BYTES
from qlora_engine.training.frozen import FrozenLinear
from qlora_engine.training.loss import LOGITS_BYTES


@dataclass(frozen=True)
class Block:
    """Some of the tokens that an output layer tells apart.

    Attributes:
        start: the first of them.
        layer: their rows of the layer.
    """

    start: int
    layer: FrozenLinear

    @property
    def width(self) -> int:
        """How many tokens."""
        return int(self.layer.weight.shape[0])

    def logits(self, hidden: mx.array, matrix: mx.array) -> mx.array:
        """Of these tokens, float32 (N, width).

        Args:
            hidden: (N, D).
            matrix: (width, D).
        """
        logits = (hidden @ matrix.T).astype(mx.float32)
        return logits + self.layer.bias if "bias" in self.layer else logits

    def places(self, targets: mx.array) -> tuple[mx.array, mx.array]:
        """Where in the block each target is, int32 (N,), and whether it is there at all, bool (N,)."""
        places = targets - self.start
        return mx.clip(places, 0, self.width - 1), (places >= 0) & (places < self.width)


def blocks_of(layer: FrozenLinear, kind: mx.Dtype) -> list[Block]:
    """A layer in blocks that take at most `BLOCK_BYTES` when they are dequantized.

    Args:
        kind: type of activations.
    """
    outputs, inputs = layer.weight.shape[0], layer.weight.shape[1] * 32 // layer.bits
    count = math.ceil(outputs * inputs * kind.size / BLOCK_BYTES)
    size = math.ceil(outputs / count)
    return [Block(start, layer.part(start, min(start + size, outputs))) for start in range(0, outputs, size)]


def block_loss(blocks: list[Block], hidden: mx.array, targets: mx.array, valid: mx.array) -> mx.array:
    """Cross-entropy summed over the rows that count, float32 (), as `trained_loss` computes it.

    Twice over all blocks: for the sum of exponentials of every row, then for the gradient, whose logits are computed
    again (as the blocks of attention are in FlashAttention; Dao et al. 2022).

    Args:
        hidden: (N, D), any float type.
        targets: int32 (N,).
        valid: bool (N,); a row that is not adds nothing, whatever its logits are.
    """

    @mx.custom_function
    def loss(hidden: mx.array) -> tuple[mx.array, mx.array]:
        of_sums, of_targets = _sums(blocks, hidden, targets)
        losses = mx.where(valid, of_sums - of_targets, 0.0)
        return losses.sum(), _gradient(blocks, hidden, targets, valid, of_sums)

    @loss.vjp
    def backward(
        _primals: mx.array, cotangents: tuple[mx.array, mx.array], outputs: tuple[mx.array, mx.array]
    ) -> mx.array:
        gradient = outputs[1]
        return (cotangents[0] * gradient.astype(mx.float32)).astype(gradient.dtype)

    outputs: Any = loss(hidden)
    summed: mx.array = outputs[0]
    return summed


def _sums(blocks: list[Block], hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """The logarithm of every row's sum of exponentials, and the logit of its target, float32 (N,)."""
    sums: list[mx.array] = []
    picked, after = mx.zeros(targets.shape), hidden
    for block in blocks:
        matrix = block.layer.matrix(after)
        of_chunks: list[mx.array] = []
        of_targets: list[mx.array] = []
        for these, part in _chunks(block, hidden, of_targets):
            logits = block.logits(part, matrix)
            places, inside = block.places(targets[these])
            of_chunks.append(mx.logsumexp(logits, axis=-1))
            found = mx.take_along_axis(logits, places[:, None], axis=-1)[:, 0]
            # Both at once: the logits of a chunk are there until the last that reads them has.
            of_targets.append(mx.depends([mx.where(inside, found, 0.0)], [of_chunks[-1]])[0])
        sums.append(mx.concatenate(of_chunks))
        picked = picked + mx.concatenate(of_targets)
        (after,) = mx.depends([hidden], [picked])
    return mx.logsumexp(mx.stack(sums), axis=0), picked


def _gradient(blocks: list[Block], hidden: mx.array, targets: mx.array, valid: mx.array, of_sums: mx.array) -> mx.array:
    """Of the hidden rows, (N, D): the probabilities less one at the target, times the matrix."""
    (after,) = mx.depends([hidden], [of_sums])
    total = mx.zeros(hidden.shape, mx.float32)
    for block in blocks:
        matrix = block.layer.matrix(after)
        made: list[mx.array] = []
        for these, part in _chunks(block, after, made):
            logits = block.logits(part, matrix)
            places, inside = block.places(targets[these])
            shares = mx.exp(logits - of_sums[these][:, None])
            shares = shares.at[mx.arange(places.shape[0]), places].subtract(inside.astype(mx.float32))
            made.append(mx.where(valid[these][:, None], shares, 0.0).astype(hidden.dtype) @ matrix)
        total = total + mx.concatenate(made).astype(mx.float32)
        (after,) = mx.depends([hidden], [total])
    return total.astype(hidden.dtype)


def _chunks(block: Block, hidden: mx.array, made: list[mx.array]) -> Iterator[tuple[slice, mx.array]]:
    """Rows whose logits may exist at once; each chunk waits for what was made of the one before."""
    rows = max(1, LOGITS_BYTES // (4 * block.width))
    for start in range(0, hidden.shape[0], rows):
        these = slice(start, start + rows)
        yield these, mx.depends([hidden[these]], made[-1:])[0] if made else hidden[these]
