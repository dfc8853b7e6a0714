"""The loss: next-token cross-entropy in float32, summed over the targets."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn


def token_loss(model: nn.Module, tokens: mx.array, supervised: mx.array) -> tuple[mx.array, mx.array]:
    """Summed next-token loss over the supervised targets.

    Args:
        model: maps int32 (B, T) to logits (B, T, V).
        tokens: int32 (B, T), padded on the right.
        supervised: bool (B, T), True where the token is a target; column 0 never is.

    Returns:
        loss: float32 (), nats summed over targets. Sums add up over micro-batches, means do not.
        count: int32 (), number of targets; 0 gives a loss of 0.
    """
    logits = model(tokens[:, :-1])
    mask = supervised[:, 1:]
    losses = cross_entropy(logits, mx.where(mask, tokens[:, 1:], 0))
    # `where`, not a product: a masked position may hold infinity, and 0 × infinity is NaN.
    return mx.where(mask, losses, 0.0).sum(), mask.sum()


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Cross-entropy of every position, float32, in the shape of `targets`.

    The maximum is taken off before MLX's fused kernel: at logits of ±1e4 near ties the kernel alone is off by
    3e-3 relative, and by 5e-7 with it. The shift cancels in the loss, so it needs no gradient.

    Args:
        logits: (..., V), any float type.
        targets: int32 (...), each in [0, V).
    """
    logits = logits.astype(mx.float32)
    shifted = logits - mx.stop_gradient(logits.max(axis=-1, keepdims=True))
    return mx.fast.cross_entropy(shifted, targets)
