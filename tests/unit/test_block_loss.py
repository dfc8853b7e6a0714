"""The loss over an output layer in blocks: the value and gradient of the whole one, in less memory."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from qlora_engine.training import block_loss as module
from qlora_engine.training import loss as whole
from qlora_engine.training.block_loss import block_loss, blocks_of
from qlora_engine.training.dropout import step_key
from qlora_engine.training.frozen import DEQUANTIZED, FrozenLinear, Ways, quantized_layers, use
from qlora_engine.training.recompute import checkpoint_layers
from support.small import assert_close, llama_model, targets, training_step, window_gradients, with_adapters

HIDDEN, VOCABULARY, ROWS = 64, 300, 11


def output_layer(vocabulary: int = VOCABULARY, *, bias: bool = False) -> FrozenLinear:
    """Quantized, with random weights."""
    mx.random.seed(0)
    layer: Any = nn.QuantizedLinear.from_linear(nn.Linear(HIDDEN, vocabulary, bias=bias), group_size=32, bits=4)
    use(layer, DEQUANTIZED)
    layer.freeze()
    return layer  # type: ignore[no-any-return]  # `use` has made it one


def in_blocks(monkeypatch: pytest.MonkeyPatch, count: int, layer: FrozenLinear) -> list[module.Block]:
    """The layer in so many blocks."""
    size = 4 * HIDDEN * layer.weight.shape[0]
    monkeypatch.setattr(module, "BLOCK_BYTES", -(-size // count))
    blocks = blocks_of(layer, mx.float32)
    assert len(blocks) == count
    return blocks


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows_at_once", [2, 1000])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_value_and_gradient_are_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, count: int, rows_at_once: int, bias: bool
) -> None:
    """Whatever the blocks, also one that ends early, and however few rows at a time."""
    layer = output_layer(bias=bias)
    blocks = in_blocks(monkeypatch, count, layer)
    monkeypatch.setattr(module, "LOGITS_BYTES", 4 * rows_at_once * blocks[0].width)
    hidden = 3.0 * mx.random.normal((ROWS, HIDDEN))
    tokens = mx.random.randint(0, VOCABULARY, (ROWS,))
    valid = mx.arange(ROWS) < ROWS - 2
    value, gradient = mx.value_and_grad(lambda h: block_loss(blocks, h, tokens, valid))(hidden)
    expected, of_hidden = mx.value_and_grad(
        lambda h: whole.trained_loss(layer.for_several(h), h, tokens, valid, VOCABULARY)
    )(hidden)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    assert_close({"gradient": np.array(gradient)}, {"gradient": np.array(of_hidden)}, 1e-5)
    assert not np.array(gradient)[-2:].any()


def test_a_row_that_does_not_count_may_hold_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 × infinity is NaN, and would spoil the gradient of the others."""
    blocks = in_blocks(monkeypatch, 2, output_layer())
    hidden = mx.ones((3, HIDDEN)) * mx.array([[1.0], [1.0], [float("inf")]])
    tokens, valid = mx.array([1, 299, 5]), mx.array([True, True, False])
    value, gradient = mx.value_and_grad(lambda h: block_loss(blocks, h, tokens, valid))(hidden)
    assert np.isfinite(float(value))
    assert np.isfinite(np.array(gradient)).all()


def test_only_a_block_is_dequantized_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is for: the matrix of a large vocabulary would be the most that a long row takes."""
    layer = output_layer(40_000)
    matrix = 4 * HIDDEN * 40_000
    hidden, tokens, valid = mx.random.normal((64, HIDDEN)), mx.arange(64), mx.ones(64, mx.bool_)
    monkeypatch.setattr(module, "LOGITS_BYTES", matrix // 20)
    monkeypatch.setattr(whole, "LOGITS_BYTES", matrix // 20)
    peaks = []
    for blocks in (in_blocks(monkeypatch, 1, layer), in_blocks(monkeypatch, 4, layer)):
        mx.eval(hidden, tokens, valid)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(mx.grad(lambda h, blocks=blocks: block_loss(blocks, h, tokens, valid))(hidden))
        peaks.append(mx.get_peak_memory() - before)
    assert peaks[0] - peaks[1] > matrix / 2


def test_a_model_whose_layers_are_recomputed_takes_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """There memory is short; elsewhere the matrix is dequantized once, and the logits are computed once."""
    monkeypatch.setattr(module, "BLOCK_BYTES", 1000)
    used = []

    def watched(*arguments: Any) -> mx.array:
        used.append(len(arguments[0]))
        return block_loss(*arguments)

    monkeypatch.setattr("qlora_engine.training.head.block_loss", watched)
    found = []
    for recomputed, ways in ((False, DEQUANTIZED), (True, Ways()), (True, DEQUANTIZED)):
        model = llama_model(tied=False)
        nn.quantize(model, group_size=32, bits=4)
        model.freeze()
        with_adapters(model)
        for layer in quantized_layers(model).values():
            use(layer, ways)
        if recomputed:
            checkpoint_layers(model.layers)
        model.train()
        step = training_step(model)
        loss = step.micro_batch(targets(4, 12), step_key(1, 1)).loss
        found.append((bool(used), {"loss": np.array([loss])}, window_gradients(step)))
        used.clear()
    assert [blocks for blocks, *_ in found] == [False, False, True]
    for index in (1, 2):
        assert_close(found[2][index], found[0][index], 1e-4)
