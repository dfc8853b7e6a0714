"""Products with frozen matrices: every way gives the same, and the fastest that fits is chosen."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from qlora_engine.training.frozen import Ways, keep_dequantized, quantized_layers, use
from qlora_engine.training.frozen_choice import Choice, Shape, Timing, apply, choose, measure
from qlora_engine.training.measured import Measured
from qlora_engine.training.tree import flat


class Pair(nn.Module):
    """Two quantized layers, one with a bias."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        mx.random.seed(0)
        self.first, self.second = nn.Linear(64, 96), nn.Linear(96, 64, bias=False)
        nn.quantize(self, group_size=32, bits=4, mode=mode)

    def __call__(self, x: mx.array) -> mx.array:
        return self.second(mx.tanh(self.first(x)))


WAYS = [Ways(f, b) for f in ("quantized", "dequantized") for b in ("quantized", "dequantized")]


def gradients(model: nn.Module, x: mx.array, *, recomputed: bool = False) -> tuple[mx.array, mx.array]:
    """A loss and its gradient for the input."""
    compute = mx.checkpoint(model) if recomputed else model
    found: tuple[mx.array, mx.array] = mx.value_and_grad(lambda x: mx.square(compute(x)).sum())(x)
    return found


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("ways", [*WAYS, None])
def test_values_and_gradients_are_those_of_the_quantized_product(
    mode: str, recomputed: bool, ways: Ways | None
) -> None:
    """A fast path that computes something else trains something else."""
    plain, fast = Pair(mode), Pair(mode)
    fast.update(plain.parameters())
    if ways is None:
        keep_dequantized(fast, mx.float32)
        assert type(fast.first) is nn.Linear
        assert not flat(fast.trainable_parameters())
        assert fast.first.weight.dtype == mx.float32
    else:
        for layer in quantized_layers(fast).values():
            use(layer, ways)
        assert fast.parameters().keys() == plain.parameters().keys()
    x = mx.random.normal((2, 5, 64), key=mx.random.key(1))
    for one, other in zip(gradients(plain, x), gradients(fast, x, recomputed=recomputed), strict=True):
        np.testing.assert_allclose(np.array(other), np.array(one), rtol=2e-4, atol=2e-4 * float(mx.abs(one).max()))


SHAPES = (Shape(96, 64, 4, 32, "affine"), Shape(64, 96, 4, 32, "affine"))


def timed(**seconds: tuple[float, float]) -> dict[Shape, Timing]:
    """The same times for both shapes."""
    return dict.fromkeys(SHAPES, Timing(**{"quantized": (9, 9), "dequantized": (9, 9), "kept": (9, 9), **seconds}))


def test_the_faster_way_is_chosen_in_each_direction() -> None:
    """On one machine the quantized kernel wins, on another dequantizing first, and backward need not be as forward."""
    model = Pair("affine")
    choice = choose(model, timed(quantized=(1, 5), dequantized=(2, 3)), kind=mx.float32, room=1e9)
    assert not choice.kept
    assert dict(choice.ways) == dict.fromkeys(SHAPES, Ways("quantized", "dequantized"))
    assert Choice.of(json.loads(json.dumps(choice.as_json()))) == choice
    apply(model, choice, mx.float32)
    assert {layer.ways for layer in quantized_layers(model).values()} == {Ways("quantized", "dequantized")}


@pytest.mark.parametrize(("room", "kept"), [(1e9, True), (17_000, False), (-1.0, False)])
def test_dequantized_weights_are_kept_only_where_they_fit(room: float, kept: bool) -> None:
    """7 billion weights take 14 GB so; a Mac may not have them."""
    model = Pair("affine")
    choice = choose(model, timed(quantized=(2, 2), kept=(1, 1)), kind=mx.float32, room=room)
    assert choice.kept == kept
    apply(model, choice, mx.float32)
    assert bool(quantized_layers(model)) != kept


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    """Every start would pay for it."""
    beats: list[int] = []

    def found(rows: int, device: str = "this") -> dict[Shape, Timing]:
        known = Measured(tmp_path / "cache" / "measured.json")
        about = {"device": device}
        return measure(Pair("affine"), rows, mx.float32, about=about, known=known, beat=lambda: beats.append(1))

    first = found(40)
    assert set(first) == set(SHAPES)
    assert all(min(*t.quantized, *t.dequantized, *t.kept) > 0 for t in first.values())
    assert len(beats) == 2
    assert found(50) == first  # 50 rows are like 40
    assert found(40, "that") != first


def test_a_damaged_memory_of_measurements_is_none(tmp_path: Path) -> None:
    """It may be deleted or cut at any time."""
    path = tmp_path / "measured.json"
    for content in ("{torn", "[]", ""):
        path.write_text(content)
        assert Measured(path).answer({"what": "x"}) is None
        Measured(path).note({"what": "x"}, [1.5, 2.0])
        assert Measured(path).answer({"what": "x"}) == [1.5, 2.0]
    path.unlink()
    path.mkdir()
    Measured(path).note({"what": "x"}, 1)
    assert Measured(path).answer({"what": "x"}) is None
