"""LoRA layers in fewer passes: the same values, gradients and updates as mlx_lm's, whatever lies under them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear

from qlora_engine.training.dropout import DropoutKey, key_dropout, step_key
from qlora_engine.training.frozen import Ways, keep_dequantized, quantized_layers, use
from qlora_engine.training.lowrank import LowRank, replace_lora
from qlora_engine.training.recompute import checkpoint_layers
from qlora_engine.training.tree import flat
from support.small import assert_close, assert_same, llama_model, masters, targets, training_step, window_gradients
from support.small import with_adapters as adapted

WAYS = [Ways(f, b) for f in ("quantized", "dequantized") for b in ("quantized", "dequantized")]
KEY = step_key(1, 1)


class Two(nn.Module):
    """Two adapted layers, one with a bias."""

    def __init__(self, *, quantized: bool) -> None:
        super().__init__()
        mx.random.seed(0)
        self.first, self.second = nn.Linear(64, 96), nn.Linear(96, 64, bias=False)
        if quantized:
            nn.quantize(self, group_size=32, bits=4)
        self.freeze()
        self.first, self.second = (LoRALinear.from_base(layer, r=4, scale=3.0) for layer in (self.first, self.second))
        for layer in (self.first, self.second):
            layer.linear.freeze()
            layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape)

    def __call__(self, x: mx.array) -> mx.array:
        return self.second(mx.tanh(self.first(x)))


def gradients(model: nn.Module, x: mx.array) -> dict[str, np.ndarray[Any, Any]]:
    def loss(parameters: Any, x: mx.array) -> mx.array:
        model.update(parameters)
        return mx.square(model(x)).sum()

    trained = model.trainable_parameters()
    value, (of_parameters, of_x) = mx.value_and_grad(loss, argnums=(0, 1))(trained, x)
    model.update(trained)
    return {name: np.array(array) for name, array in {**flat(of_parameters), "x": of_x, "loss": value}.items()}


@pytest.mark.parametrize("rows", [(5,), (2, 5)])
@pytest.mark.parametrize("ways", [None, "kept", *WAYS])
def test_values_and_gradients_are_those_of_mlx_lm(ways: Ways | str | None, rows: tuple[int, ...]) -> None:
    """Over a plain matrix, a quantized one in every way of multiplying, and one that was dequantized for good."""
    plain, ours = Two(quantized=ways is not None), Two(quantized=ways is not None)
    ours.update(plain.parameters())
    assert replace_lora(ours) == 2
    assert replace_lora(ours) == 0
    if ways == "kept":
        keep_dequantized(ours, mx.float32)
    elif isinstance(ways, Ways):
        for layer in quantized_layers(ours).values():
            use(layer, ways)
    x = mx.random.normal((*rows, 64), key=mx.random.key(1))
    assert_close(gradients(ours, x), gradients(plain, x), 2e-5)


def test_other_adapters_stay() -> None:
    """DoRA scales its columns, and a layer that is not linear multiplies in its own way."""
    model = Two(quantized=False)
    model.first = DoRALinear.from_base(nn.Linear(64, 96), r=4)
    assert replace_lora(model) == 1
    assert type(model.first) is DoRALinear
    assert type(model.second) is LowRank


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_step_learns_the_same(dropout: float, recomputed: bool) -> None:
    """With the scale in the B matrices, whose gradients must be those of B without it."""
    found = []
    for replace in (False, True):
        source = DropoutKey()
        model = adapted(llama_model(), dropout=dropout, source=source)
        assert not replace or replace_lora(model) == 14
        if recomputed:
            checkpoint_layers(model.layers)
        model.train()
        step = training_step(model, dropout=source, optimizer="adamw", lora_plus_ratio=4.0)
        loss = step.micro_batch(targets(4, 12), KEY).loss
        gradients = window_gradients(step)
        step.update()
        model.eval()
        step.sync_model()
        found.append(({"loss": np.array([loss, step.loss(targets(3, 9, seed=5))])}, gradients, masters(step)))
    for index, tolerance in enumerate((1e-6, 1e-5, 1e-3)):
        assert_close(found[1][index], found[0][index], tolerance)


def test_the_model_holds_the_weights_as_mlx_lm_means_them() -> None:
    """Also after a step, which computes with other ones: samples, checkpoints and a second step read them."""
    model = adapted(llama_model())
    replace_lora(model)
    step = training_step(model)
    before = masters(step)
    step.micro_batch(targets(4, 12), KEY)
    assert not any(module.folded for _, module in model.named_modules() if isinstance(module, LowRank))
    step.sync_model()
    assert_same(masters(training_step(model)), before)


def test_bfloat16_stays_bfloat16() -> None:
    """A float32 adapter would make every activation after it float32."""
    model = Two(quantized=False)
    model.set_dtype(mx.bfloat16)
    replace_lora(model)
    model.first.lora_a = model.first.lora_a.astype(mx.float32)
    assert model(mx.zeros((3, 64), mx.bfloat16)).dtype == mx.bfloat16


def test_dropout_of_the_input_is_left_to_the_adapter_alone() -> None:
    """The frozen layer sees all of it; in evaluation so does the adapter."""
    source = DropoutKey()
    plain, ours = Two(quantized=False), Two(quantized=False)
    for model in (plain, ours):
        for layer in (model.first, model.second):
            layer.dropout = nn.Dropout(0.5)
        key_dropout(model, source)
    replace_lora(ours)
    x = mx.random.normal((7, 64), key=mx.random.key(3))
    for train in (True, False):
        plain.train(train)
        ours.train(train)
        assert_close(gradients(ours, x), gradients(plain, x))


def test_gradients_are_made_while_their_inputs_are_there() -> None:
    """Joined at the end they could wait for each other, and every layer's inputs with them, recomputed or not."""

    def peak(*, ours: bool) -> int:
        model = adapted(llama_model(layers=12, hidden=64))
        assert not ours or replace_lora(model) == 12 * 7
        checkpoint_layers(model.layers)
        model.train()
        step = training_step(model)
        step.micro_batch(targets(2, 129), KEY)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        step.micro_batch(targets(2, 129), KEY)
        return mx.get_peak_memory() - before

    assert peak(ours=True) < 1.1 * peak(ours=False)
