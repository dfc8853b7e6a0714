"""Dequantizing just before a product gives what MLX's quantized product gives."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from qlora_engine.training.frozen import DequantizedLinear, dequantize_products


class Pair(nn.Module):
    """Two quantized layers, one with a bias."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        mx.random.seed(0)
        self.first, self.second = nn.Linear(64, 96), nn.Linear(96, 64, bias=False)
        nn.quantize(self, group_size=32, bits=4, mode=mode)

    def __call__(self, x: mx.array) -> mx.array:
        return self.second(mx.tanh(self.first(x)))


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
@pytest.mark.parametrize("recomputed", [False, True])
def test_values_and_gradients_are_those_of_the_quantized_product(mode: str, recomputed: bool) -> None:
    """A fast path that computes something else trains something else."""
    plain, fast = Pair(mode), Pair(mode)
    fast.update(plain.parameters())
    dequantize_products(fast)
    assert isinstance(fast.first, DequantizedLinear)
    assert fast.parameters().keys() == plain.parameters().keys()
    x = mx.random.normal((2, 5, 64), key=mx.random.key(1))

    def loss(model: nn.Module, x: mx.array) -> mx.array:
        return mx.square((mx.checkpoint(model) if recomputed else model)(x)).sum()

    for one, other in zip(
        mx.value_and_grad(lambda x: loss(plain, x))(x), mx.value_and_grad(lambda x: loss(fast, x))(x), strict=True
    ):
        np.testing.assert_allclose(np.array(other), np.array(one), rtol=2e-4, atol=2e-4 * float(mx.abs(one).max()))
