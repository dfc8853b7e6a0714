"""Adapted layers that read the same input, computed as one: the same values, gradients and updates as apart."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.models import qwen2
from mlx_lm.tuner.utils import linear_to_lora_layers

from qlora_engine.training import gated
from qlora_engine.training.dropout import DropoutKey, step_key
from qlora_engine.training.frozen import Ways, keep_dequantized, quantized_layers, use
from qlora_engine.training.lowrank import LowRank, replace_lora
from qlora_engine.training.recompute import checkpoint_layers
from qlora_engine.training.siblings import bring_together, faster, measure
from support.small import assert_close, assert_same, llama_model, masters, targets, training_step, window_gradients
from support.small import with_adapters as adapted

KEY = step_key(1, 1)
DEQUANTIZED = Ways("dequantized", "dequantized")


def qwen_model() -> nn.Module:
    """Its queries, keys and values have a bias."""
    mx.random.seed(0)
    settings = {
        "model_type": "qwen2", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 64,
    }  # fmt: skip
    model = qwen2.Model(qwen2.ModelArgs.from_dict(settings))
    for layer in model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            layer.self_attn[name].bias = mx.random.normal(layer.self_attn[name].bias.shape)
    model.freeze()
    return model


def prepared(model: nn.Module, way: Ways | str | None, *, dropout: float = 0.0) -> nn.Module:
    """With low-rank layers over matrices that are kept or multiplied in a way."""
    if way is not None:
        nn.quantize(model, group_size=32, bits=4)
        model.freeze()
    adapted(model, dropout=dropout, source=DropoutKey() if dropout else None)
    replace_lora(model)
    if way == "kept":
        keep_dequantized(model, mx.float32)
    elif isinstance(way, Ways):
        for layer in quantized_layers(model).values():
            use(layer, way)
    model.train()
    return model


@pytest.mark.parametrize("make", [llama_model, qwen_model])
@pytest.mark.parametrize("way", [None, "kept", Ways(), DEQUANTIZED])
def test_a_step_learns_the_same(make: Any, way: Ways | str | None) -> None:
    """Over every kind of frozen layer, with a bias and without."""
    found = []
    for together in (False, True):
        model = prepared(make(), way)
        assert not together or [len(group.members) for group in bring_together(model)] == [3, 2, 3, 2]
        step = training_step(model, optimizer="adamw", lora_plus_ratio=4.0)
        loss = step.micro_batch(targets(4, 12), KEY).loss
        gradients = window_gradients(step)
        step.update()
        model.eval()
        step.sync_model()
        found.append(({"loss": np.array([loss, step.loss(targets(3, 9, seed=5))])}, gradients, masters(step)))
    for index, tolerance in enumerate((1e-6, 2e-5, 2e-3)):
        assert_close(found[1][index], found[0][index], tolerance)


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_gated_part_learns_the_same(recomputed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU its two branches stay side by side, and so do their gradients."""
    monkeypatch.setattr(gated, "on_cpu", lambda: False)
    found = []
    for together in (False, True):
        model = prepared(llama_model(), "kept")
        assert gated.replace_gated(model) == 2
        assert not together or bring_together(model)
        if recomputed:
            checkpoint_layers(model.layers)
        step = training_step(model)
        loss = step.micro_batch(targets(4, 12), KEY).loss
        found.append(({"loss": np.array(loss)}, window_gradients(step)))
    for index, tolerance in enumerate((1e-6, 2e-5)):
        assert_close(found[1][index], found[0][index], tolerance)


def test_names_and_parameters_stay() -> None:
    """Adapters are saved and loaded by them, and a matrix is not there twice."""
    model = prepared(llama_model(), "kept")
    before = {name: np.array(array) for name, array in _parameters(model).items()}
    memory = mx.get_active_memory()
    groups = bring_together(model)
    assert groups
    assert mx.get_active_memory() - memory < 30_000  # the matrices are 100 kB
    assert_same({name: np.array(array) for name, array in _parameters(model).items()}, before)


def _parameters(model: nn.Module) -> dict[str, mx.array]:
    found: Any = nn.utils.tree_flatten(model.parameters())
    return dict(found)


def test_parted_again_they_compute_by_themselves() -> None:
    """What was measured may say that it is faster."""
    model = prepared(llama_model(), DEQUANTIZED)
    tokens = mx.array([[1, 2, 3, 4]])
    before = np.array(model(tokens))
    groups = bring_together(model)
    apart, together = measure(groups, 8, mx.float32)
    assert apart > 0
    assert together > 0
    for group in groups:
        group.part()
    assert all(module.siblings is None for _, module in model.named_modules() if isinstance(module, LowRank))
    assert np.array_equal(np.array(model(tokens)), before)


def test_only_what_reads_the_same_input_and_drops_nothing_of_it() -> None:
    """Each adapter drops elements of its own; a layer that is called twice has two inputs."""
    assert bring_together(prepared(llama_model(), None, dropout=0.1)) == []
    model = llama_model()
    linear_to_lora_layers(model, -1, {"rank": 4, "scale": 8.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]})
    replace_lora(model)
    assert bring_together(model) == []

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = prepared(llama_model(layers=1), None)

        def __call__(self, tokens: mx.array) -> mx.array:
            return self.inner(tokens) + self.inner(tokens)

    assert bring_together(Twice()) == []


def test_a_different_rank_or_kind_stays_apart() -> None:
    """One matrix has one rank, one quantization, and a bias for all or none."""
    model = prepared(llama_model(layers=1), None)
    attention = model.layers[0].self_attn
    attention.k_proj.lora_a, attention.k_proj.lora_b = mx.zeros((32, 2)), mx.zeros((2, 16))
    assert [len(group.members) for group in bring_together(model)] == [2]


def test_being_together_must_be_worth_its_memory() -> None:
    """A gain within the noise of timing is none."""
    assert faster(1.0, 0.9)
    assert not faster(1.0, 0.99)


def test_a_part_that_asks_for_its_gate_last_is_no_pair_of_branches() -> None:
    """Side by side in another order, the gate would be taken for what it gates."""
    model = prepared(llama_model(layers=1), "kept")
    mlp = model.layers[0].mlp
    attention, branches = bring_together(model)
    assert gated._siblings(mlp) is branches
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj
    assert gated._siblings(mlp) is None
    mlp.gate_proj, mlp.up_proj = attention.members[:2]
    assert gated._siblings(mlp) is None
