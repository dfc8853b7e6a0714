"""The loss: next-token cross-entropy in float32, summed over the targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from qlora_engine.training.device import exp, on_cpu

LOGITS_BYTES = 64 << 20  # of float32 logits that exist at once
Project = Callable[[mx.array], mx.array]


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Cross-entropy of every position, float32, in the shape of `targets`.

    On a GPU by MLX's fused kernel, of logits less their maximum: at logits of ±1e4 near ties the kernel alone is off
    by 3e-3 relative, and by 5e-7 with it. The shift cancels in the loss, so it needs no gradient.

    Args:
        logits: (..., V), any float type.
        targets: int32 (...), each in [0, V).
    """
    logits = logits.astype(mx.float32)
    if on_cpu():
        return _entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)).reshape(targets.shape)
    shifted = logits - mx.stop_gradient(logits.max(axis=-1, keepdims=True))
    return mx.fast.cross_entropy(shifted, targets)


def _entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """The same for the CPU, where MLX fuses nothing: of each logit one exponential, which the gradient takes over.

    Args:
        logits: float32 (N, V).
        targets: int32 (N,).
    """

    @mx.custom_function
    def entropy(logits: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        top = logits.max(axis=-1, keepdims=True)
        powers = exp(logits - top)
        total = powers.sum(axis=-1, keepdims=True)
        picked = mx.take_along_axis(logits, targets[:, None], axis=-1)
        return (mx.log(total) - (picked - top))[:, 0], powers, total

    @entropy.vjp
    def backward(
        _logits: mx.array, cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, mx.array, mx.array]
    ) -> mx.array:
        _, powers, total = outputs
        cotangent = cotangents[0]
        gradient = powers * (cotangent[:, None] / total)
        return gradient.at[mx.arange(targets.shape[0]), targets].add(-cotangent)

    outputs: Any = entropy(logits)
    losses: mx.array = outputs[0]
    return losses


def summed_loss(logits: mx.array, targets: mx.array, valid: mx.array) -> mx.array:
    """Cross-entropy summed over the rows that count, float32 ().

    Args:
        logits: (N, V), any float type.
        targets: int32 (N,).
        valid: bool (N,); a row that is not adds nothing, whatever its logits are.
    """
    # `where`, not a product: such a row may hold infinity, and 0 × infinity is NaN.
    return mx.where(valid, cross_entropy(logits, targets), 0.0).sum()


def projected_loss(project: Project, hidden: mx.array, targets: mx.array, valid: mx.array, width: int) -> mx.array:
    """`summed_loss` of `project(hidden)` in chunks, so that the logits of all rows never exist at once.

    Each chunk waits for the one before, or all would be computed at once.

    Args:
        project: frozen output layer, (N, D) to (N, V).
        hidden: (N, D), any float type.
        targets: int32 (N,).
        valid: bool (N,).
        width: V.
    """
    total = mx.array(0.0)
    for these in _chunks(hidden, width):
        (part,) = mx.depends([hidden[these]], [total])
        total = total + summed_loss(project(part), targets[these], valid[these])
    return total


def trained_loss(project: Project, hidden: mx.array, targets: mx.array, valid: mx.array, width: int) -> mx.array:
    """`projected_loss` for training: the gradient of the hidden rows is made while a chunk's logits are there.

    The backward pass only scales it, so that no logits are kept or computed twice (as in Liger's fused linear
    cross-entropy, Hsu et al. 2024). It is always computed, so use `projected_loss` where no gradient is wanted.
    """

    @mx.custom_function
    def loss(hidden: mx.array) -> tuple[mx.array, mx.array]:
        total = mx.array(0.0)
        gradients: list[mx.array] = []
        for these in _chunks(hidden, width):
            part = hidden[these]
            if gradients:  # on the loss too, or every chunk's logits would wait for the sum at the end
                (part,) = mx.depends([part], [gradients[-1], total])

            def of_chunk(part: mx.array, these: slice = these) -> mx.array:
                return summed_loss(project(part), targets[these], valid[these])

            (chunk,), (gradient,) = mx.vjp(of_chunk, [part], [mx.array(1.0)])
            total = total + chunk
            gradients.append(gradient)
        return total, mx.concatenate(gradients)

    @loss.vjp
    def backward(
        _primals: mx.array, cotangents: tuple[mx.array, mx.array], outputs: tuple[mx.array, mx.array]
    ) -> mx.array:
        gradient = outputs[1]
        return (cotangents[0] * gradient.astype(mx.float32)).astype(gradient.dtype)

    outputs: Any = loss(hidden)
    summed: mx.array = outputs[0]
    return summed


def _chunks(hidden: mx.array, width: int) -> list[slice]:
    rows = max(1, LOGITS_BYTES // (4 * width))
    return [slice(start, start + rows) for start in range(0, hidden.shape[0], rows)]
