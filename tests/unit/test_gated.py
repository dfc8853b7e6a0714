"""Feed-forward parts gated by SiLU: the same results and gradients, and no part that is gated by something else."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.models import gemma
from mlx_lm.tuner.lora import LoRALinear

from qlora_engine.training import device, gated
from qlora_engine.training.lowrank import replace_lora
from qlora_engine.training.recompute import checkpoint_layers
from qlora_engine.training.targets import Targets
from support.small import assert_close, batch, llama_model, masters, training_step, window_gradients, with_adapters

Product = Callable[[mx.array, mx.array], mx.array]
on_x86 = pytest.mark.skipif(not device.SLOW_EXP, reason="elsewhere MLX's own sigmoid is faster")


@on_x86
def test_a_power_is_as_good_as_the_exponential() -> None:
    """Softmax and sigmoid may lose no digit that float32 has."""
    x = np.linspace(-87, 20, 20_001, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.max(np.abs(np.array(device.exp(mx.array(x))) / exact - 1)) < 4e-6
    near = np.abs(x) < 3
    assert np.max(np.abs(np.array(device.exp(mx.array(x)))[near] / exact[near] - 1)) < 3e-7
    assert np.array(device.exp(mx.array([-np.inf, np.inf, 200.0, -200.0]))).tolist() == [0.0, np.inf, np.inf, 0.0]
    assert mx.isnan(device.exp(mx.array(np.nan))).item()


@pytest.mark.parametrize("product", [gated.silu_times, gated.fused_silu_times])
def test_the_product_and_its_gradients_are_those_of_silu(product: Product) -> None:
    """Also where the sigmoid is 0 or 1 to the last bit."""
    gate = mx.concatenate([3 * mx.random.normal((5, 64)), mx.array([[-200.0, -88.0, 0.0, 88.0] * 16])])
    up, cotangent = mx.random.normal((6, 64)), mx.random.normal((6, 64))

    def plain(gate: mx.array, up: mx.array) -> mx.array:
        return gate * mx.sigmoid(gate) * up

    ours = mx.vjp(product, [gate, up], [cotangent])
    theirs = mx.vjp(plain, [gate, up], [cotangent])
    for left, right in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


@on_x86
def test_a_model_learns_the_same_with_them() -> None:
    """It is for speed alone."""
    found = []
    for replace in (False, True):
        model = with_adapters(llama_model())
        assert not replace or gated.replace_gated(model) == 2
        model.train()
        step = training_step(model)
        loss = step.micro_batch(Targets.of(*batch(4, 12)), mx.random.key(0)).loss
        found.append((loss, window_gradients(step), sorted(masters(step))))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    assert_close(found[1][1], found[0][1])
    assert found[1][2] == found[0][2]


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_gpu_makes_the_product_again_and_finds_the_same(recomputed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the part keeps its gate and what it gates, and the adapter of `down_proj` sees their product made anew."""
    found = []
    for replace in (False, True):
        model = with_adapters(llama_model())
        if replace:
            replace_lora(model)
            monkeypatch.setattr(gated, "on_cpu", lambda: False)
            assert gated.replace_gated(model) == 2
        if recomputed:
            checkpoint_layers(model.layers)
        model.train()
        step = training_step(model)
        loss = step.micro_batch(Targets.of(*batch(4, 12)), mx.random.key(0)).loss
        found.append((loss, window_gradients(step)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    assert_close(found[1][1], found[0][1])


def test_what_a_gpu_keeps_of_a_gated_part() -> None:
    """The product of gate and up is as wide as either: kept, it is a third of a layer's memory."""
    down = LoRALinear.from_base(nn.Linear(64, 64, bias=False), r=2)
    replace_lora(Holder(down))
    gate, up = mx.random.normal((2, 2048, 64))

    def peak(product: Product) -> float:
        mx.eval(gate, up)
        before = mx.get_active_memory()

        def deep(gate: mx.array) -> mx.array:
            for _ in range(16):
                gate = product(gate, up)
            return gate.sum()

        mx.reset_peak_memory()
        mx.eval(mx.grad(deep)(gate))
        return (mx.get_peak_memory() - before) / gate.nbytes / 16

    plain = peak(lambda gate, up: down(nn.silu(gate) * up))
    assert peak(lambda gate, up: gated.gated_down(down, gate, up)) < plain - 1.5  # the sigmoid and the product
    assert peak(lambda gate, up: down(gated.fused_silu_times(gate, up))) < plain - 0.5  # the sigmoid


class Holder(nn.Module):
    """So that there is a model that has the layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


@on_x86
def test_another_activation_function_stays() -> None:
    """gemma's layers have the same names and are gated by GELU."""
    mx.random.seed(0)
    model = gemma.Model(
        gemma.ModelArgs(
            model_type="gemma",
            hidden_size=32,
            num_hidden_layers=2,
            intermediate_size=64,
            num_attention_heads=4,
            head_dim=8,
            rms_norm_eps=1e-5,
            vocab_size=64,
            num_key_value_heads=2,
        )
    )
    before = [type(layer.mlp) for layer in model.layers]
    assert gated.replace_gated(model) == 0
    assert [type(layer.mlp) for layer in model.layers] == before


@on_x86
def test_twice_is_once_and_quantized_parts_stay() -> None:
    """On the CPU a product in bfloat16 is not what this is for."""
    model = llama_model()
    assert gated.replace_gated(model) == 2
    assert gated.replace_gated(model) == 2
    assert all(type(layer.mlp).__mro__.count(gated.Gated) == 1 for layer in model.layers)
    quantized = llama_model(hidden=64)
    quantized.set_dtype(mx.bfloat16)
    nn.quantize(quantized, group_size=64, bits=4)
    assert gated.replace_gated(quantized) == 0
