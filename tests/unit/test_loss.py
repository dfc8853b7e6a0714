"""The loss against its definition in float64."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from numpy.typing import NDArray

from qlora_engine.training.loss import cross_entropy, token_loss


class Fixed(nn.Module):
    """A model whose logits are a parameter."""

    def __init__(self, logits: mx.array) -> None:
        super().__init__()
        self.logits = logits

    def __call__(self, tokens: mx.array) -> mx.array:
        assert tokens.shape == self.logits.shape[:2]
        return self.logits


def reference(logits: NDArray[np.float64], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    highest = logits.max(-1, keepdims=True)
    normalizer = highest[..., 0] + np.log(np.exp(logits - highest).sum(-1))
    return normalizer - np.take_along_axis(logits, targets[..., None], -1)[..., 0]


@pytest.mark.parametrize("size", [1.0, 30.0, 1e3, 1e4])
@pytest.mark.parametrize("seed", range(3))
def test_cross_entropy_is_that_of_float64(size: float, seed: int) -> None:
    """Large logits are where kernels that skip the maximum go wrong; a loss that is off teaches the wrong thing."""
    draw = np.random.default_rng(seed)
    logits = draw.uniform(-size, size, (64, 97)).astype(np.float32)
    targets = draw.integers(0, 97, 64)
    targets[:32] = logits[:32].argmax(-1)
    got = np.array(cross_entropy(mx.array(logits), mx.array(targets.astype(np.int32))))
    np.testing.assert_allclose(got, reference(logits.astype(np.float64), targets), rtol=2e-6, atol=2e-6)


def test_cross_entropy_near_ties_of_large_logits_is_exact() -> None:
    """At ±1e4 a difference of 0.01 between the two best decides the loss; MLX's kernel alone is off by 3e-3."""
    draw = np.random.default_rng(0)
    logits = draw.uniform(-1e4, 0, (256, 50)).astype(np.float32)
    logits[:, 3] = draw.uniform(9e3, 1e4, 256)
    logits[:, 7] = logits[:, 3] + draw.uniform(-3, 3, 256).astype(np.float32)
    targets = np.full(256, 3)
    got = np.array(cross_entropy(mx.array(logits), mx.array(targets.astype(np.int32))))
    np.testing.assert_allclose(got, reference(logits.astype(np.float64), targets), rtol=2e-6)


def test_cross_entropy_of_bfloat16_logits_is_computed_in_float32() -> None:
    """Reduced in bfloat16 it is off by up to 2e-3."""
    logits = mx.random.normal((16, 1000), key=mx.random.key(0)).astype(mx.bfloat16)
    targets = mx.arange(16)
    got = cross_entropy(logits, targets)
    assert got.dtype == mx.float32
    exact = reference(np.array(logits.astype(mx.float32)).astype(np.float64), np.arange(16))
    np.testing.assert_allclose(np.array(got), exact, rtol=1e-6)


def test_the_gradient_is_softmax_minus_target() -> None:
    """The shift by the maximum must not enter the gradient."""
    draw = np.random.default_rng(1)
    logits = draw.normal(0, 5, (20, 31)).astype(np.float32)
    targets = draw.integers(0, 31, 20)
    got = np.array(mx.grad(lambda x: cross_entropy(x, mx.array(targets)).sum())(mx.array(logits)))
    exact = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    exact /= exact.sum(-1, keepdims=True)
    exact[np.arange(20), targets] -= 1
    np.testing.assert_allclose(got, exact, atol=1e-6)


def test_only_supervised_targets_count_and_padding_is_never_one() -> None:
    """mlx_lm counts one padding token a row; prompts and padding are nothing to learn."""
    draw = np.random.default_rng(2)
    logits = draw.normal(0, 3, (3, 5, 11)).astype(np.float32)
    tokens = draw.integers(1, 11, (3, 6))
    supervised = np.zeros((3, 6), bool)
    supervised[0, 1:] = True  # a full row
    supervised[1, 2:4] = True  # a prompt before, padding after
    tokens[1, 4:] = 0
    loss, count = token_loss(Fixed(mx.array(logits)), mx.array(tokens), mx.array(supervised))
    each = reference(logits.astype(np.float64), tokens[:, 1:])
    assert count.item() == 7
    assert loss.dtype == mx.float32
    assert loss.item() == pytest.approx(each[0].sum() + each[1, 1:3].sum(), rel=1e-6)


def test_the_token_in_column_0_is_no_target() -> None:
    """Nothing predicts the first token."""
    logits = mx.zeros((1, 2, 4))
    loss, count = token_loss(Fixed(logits), mx.array([[1, 2, 3]]), mx.array([[True, False, True]]))
    assert count.item() == 1
    assert loss.item() == pytest.approx(np.log(4))


def test_rows_without_a_target_give_zero_and_a_finite_gradient() -> None:
    """A mean over nothing is NaN, and one NaN ends a run."""
    model = Fixed(mx.random.normal((2, 3, 5), key=mx.random.key(0)))
    tokens, supervised = mx.array([[1, 2, 3, 4], [1, 0, 0, 0]]), mx.zeros((2, 4), mx.bool_)
    value, gradient = mx.value_and_grad(lambda x: token_loss(Fixed(x), tokens, supervised))(model.logits)
    assert (value[0].item(), value[1].item()) == (0.0, 0)
    assert np.array_equal(np.array(gradient), np.zeros((2, 3, 5)))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_stands_in_masked_positions_does_not_matter(poison: float) -> None:
    """Padding may overflow in a model's own arithmetic; 0 × infinity would be NaN."""
    logits = np.random.default_rng(3).normal(0, 1, (2, 4, 7)).astype(np.float32)
    supervised = np.ones((2, 5), bool)
    supervised[1, 2:] = False
    tokens = mx.array(np.arange(10).reshape(2, 5) % 7)
    clean, _ = token_loss(Fixed(mx.array(logits)), tokens, mx.array(supervised))
    logits[1, 2] = poison
    loss, count = token_loss(Fixed(mx.array(logits)), tokens, mx.array(supervised))
    assert count.item() == 5
    assert loss.item() == clean.item()
