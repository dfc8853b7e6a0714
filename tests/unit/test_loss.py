"""The loss against its definition in float64."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from qlora_engine.training import loss
from qlora_engine.training.loss import cross_entropy, projected_loss, summed_loss, trained_loss

Reals = NDArray[np.float32]
Numbers = NDArray[np.int64]


def reference(logits: Reals, targets: Numbers) -> NDArray[np.float64]:
    """-log softmax at the targets, in float64."""
    exact = logits.astype(np.float64)
    highest = exact.max(-1, keepdims=True)
    normalizer = highest[..., 0] + np.log(np.exp(exact - highest).sum(-1))
    picked: NDArray[np.float64] = normalizer - np.take_along_axis(exact, targets[..., None], -1)[..., 0]
    return picked


def random_rows(seed: int, size: float) -> tuple[Reals, Numbers]:
    """Half of the targets are the likeliest token, as a model that has learned something gives them."""
    draw = np.random.default_rng(seed)
    logits = draw.uniform(-size, size, (300, 97)).astype(np.float32)
    targets = draw.integers(0, 97, 300)
    targets[::2] = logits[::2].argmax(-1)
    return logits, targets


def near_ties(seed: int, size: float) -> tuple[Reals, Numbers]:
    """The two largest logits differ by little, which alone decides the loss."""
    draw = np.random.default_rng(seed)
    logits = draw.uniform(-size, 0, (300, 97)).astype(np.float32)
    logits[:, 3] = draw.uniform(0.9 * size, size, 300)
    logits[:, 7] = logits[:, 3] + draw.uniform(-3, 3, 300).astype(np.float32)
    return logits, np.full(300, 3)


def itself(rows: mx.array) -> mx.array:
    """An output layer that changes nothing, so that hidden rows are logits."""
    return rows


def whole(hidden: mx.array, targets: mx.array, valid: mx.array) -> mx.array:
    return summed_loss(hidden, targets, valid)


def projected(hidden: mx.array, targets: mx.array, valid: mx.array) -> mx.array:
    return projected_loss(itself, hidden, targets, valid, hidden.shape[-1])


def trained(hidden: mx.array, targets: mx.array, valid: mx.array) -> mx.array:
    return trained_loss(itself, hidden, targets, valid, hidden.shape[-1])


@pytest.fixture(params=[whole, projected, trained], ids=lambda way: way.__name__)
def of_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., mx.array]:
    """The three ways in which the loss of rows is computed, the last two in chunks of 64 of 300 rows."""
    monkeypatch.setattr(loss, "LOGITS_BYTES", 64 * 97 * 4)
    way: Callable[..., mx.array] = request.param
    return way


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [1.0, 30.0, 1e3, 1e4])
@pytest.mark.parametrize("rows", [random_rows, near_ties], ids=["random", "near ties"])
def test_each_token_s_loss_is_that_of_float64(
    rows: Callable[[int, float], tuple[Reals, Numbers]], size: float, seed: int
) -> None:
    """Large logits are where kernels that skip the maximum go wrong; MLX's alone is off by 3e-3 near ties."""
    logits, targets = rows(seed, size)
    got = np.array(cross_entropy(mx.array(logits), mx.array(targets.astype(np.int32))))
    exact = reference(logits, targets)
    assert got.dtype == np.float32
    assert np.isfinite(got).all()
    assert np.abs(got - exact).max() < 1e-6 * np.abs(logits).max()
    np.testing.assert_allclose(got, exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [30.0, 1e4])
@pytest.mark.parametrize("rows", [random_rows, near_ties], ids=["random", "near ties"])
def test_the_sum_is_that_of_float64_however_it_is_computed(
    rows: Callable[[int, float], tuple[Reals, Numbers]],
    size: float,
    masked: bool,
    of_rows: Callable[..., mx.array],
) -> None:
    """The loss that is reported and trained on is this sum; a row that does not count adds nothing to it."""
    logits, targets = rows(11, size)
    valid = np.random.default_rng(1).random(300) < 0.4 if masked else np.ones(300, np.bool_)
    got = of_rows(mx.array(logits), mx.array(targets.astype(np.int32)), mx.array(valid))
    assert got.dtype == mx.float32
    exact = reference(logits, targets)[valid].sum()
    assert abs(got.item() - exact) < 1e-5 * exact


def test_the_gradient_is_softmax_minus_target(of_rows: Callable[..., mx.array]) -> None:
    """The shift by the maximum must not enter it, nor a row that does not count, nor the chunk that it is in."""
    draw = np.random.default_rng(1)
    logits = draw.normal(0, 5, (300, 97)).astype(np.float32)
    targets, valid = draw.integers(0, 97, 300), draw.random(300) < 0.7

    def scaled(x: mx.array) -> mx.array:
        return 3.0 * of_rows(x, mx.array(targets), mx.array(valid))

    got = np.array(mx.grad(scaled)(mx.array(logits)))
    exact = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    exact /= exact.sum(-1, keepdims=True)
    exact[np.arange(300), targets] -= 1
    np.testing.assert_allclose(got, 3.0 * exact * valid[:, None], rtol=2e-6, atol=1e-6)


def test_bfloat16_logits_are_reduced_in_float32(of_rows: Callable[..., mx.array]) -> None:
    """Reduced in bfloat16 the loss is off by up to 2e-3."""
    logits = mx.random.normal((300, 97), key=mx.random.key(0)).astype(mx.bfloat16)
    targets = np.arange(300) % 97
    got = of_rows(logits, mx.array(targets), mx.ones(300, mx.bool_))
    assert got.dtype == mx.float32
    exact = reference(np.array(logits.astype(mx.float32)), targets).sum()
    assert got.item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_stands_in_rows_that_do_not_count_does_not_matter(poison: float, of_rows: Callable[..., mx.array]) -> None:
    """Padding may overflow in a model's own arithmetic; 0 × infinity would be NaN."""
    logits, targets = random_rows(3, 5.0)
    valid = np.ones(300, np.bool_)
    valid[[0, 100, 299]] = False
    there = (mx.array(targets), mx.array(valid))
    clean = of_rows(mx.array(logits), *there)
    logits[~valid] = poison
    assert of_rows(mx.array(logits), *there).item() == clean.item()


def test_no_row_at_all_gives_zero_and_a_gradient_of_zero(of_rows: Callable[..., mx.array]) -> None:
    """A mean over nothing is NaN, and one NaN ends a run."""
    logits, targets = random_rows(3, 5.0)
    nothing = mx.zeros(300, mx.bool_)
    value, gradient = mx.value_and_grad(lambda x: of_rows(x, mx.array(targets), nothing))(mx.array(logits))
    assert value.item() == 0.0
    assert not np.array(gradient).any()


def test_an_overflowing_loss_is_infinite_and_not_a_number_s_shadow() -> None:
    """The guard looks for what is not finite; a loss that wraps to something small would pass it."""
    logits = mx.array([[0.0, -mx.inf], [3e38, -3e38], [mx.nan, 0.0]])
    got = np.array(cross_entropy(logits, mx.array([1, 1, 0])))
    assert not np.isfinite(got).any()


def test_chunks_keep_all_logits_from_existing_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a vocabulary of 128,000 the logits are the largest arrays of a step."""
    rows, width, depth = 2048, 2048, 8
    weight = mx.random.normal((width, depth), key=mx.random.key(0))
    hidden = mx.random.normal((rows, depth), key=mx.random.key(1))
    targets, valid = mx.zeros(rows, mx.int32), mx.ones(rows, mx.bool_)
    mx.eval(weight, hidden, targets, valid)

    def peak(chunk: int, *, gradient: bool) -> int:
        monkeypatch.setattr(loss, "LOGITS_BYTES", chunk * width * 4)

        def total(hidden: mx.array) -> mx.array:
            way = trained_loss if gradient else projected_loss
            return way(lambda part: part @ weight.T, hidden, targets, valid, width)

        mx.clear_cache()
        mx.reset_peak_memory()
        mx.eval(mx.value_and_grad(total)(hidden) if gradient else total(hidden))
        return mx.get_peak_memory() - mx.get_active_memory()

    for gradient in (False, True):
        assert peak(128, gradient=gradient) < 0.4 * peak(rows, gradient=gradient)
