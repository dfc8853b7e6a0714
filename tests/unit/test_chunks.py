"""Chunks of positions: the same values and gradients, and the inner arrays of one chunk alone."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from qlora_engine.training import gated
from qlora_engine.training.chunks import in_chunks
from qlora_engine.training.dropout import step_key
from qlora_engine.training.lowrank import replace_lora
from qlora_engine.training.recompute import checkpoint_layers
from support.small import assert_close, llama_model, targets, training_step, window_gradients, with_adapters

KEY = step_key(0, 0)


@pytest.mark.parametrize("width", [16, 17, 40])
def test_a_step_learns_the_same(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether chunks divide the positions or not, and where there are too few for any."""
    monkeypatch.setattr(gated, "on_cpu", lambda: False)
    monkeypatch.setattr(gated, "CHUNK", 24)
    computed: list[int] = []

    def counted(*arguments: object) -> mx.array:
        computed.append(1)
        return in_chunks(*arguments)

    monkeypatch.setattr(gated, "in_chunks", counted)
    found = []
    for ours in (False, True):
        model = with_adapters(llama_model())
        replace_lora(model)
        if ours:
            assert gated.replace_gated(model) == 2
        checkpoint_layers(model.layers)
        model.train()
        step = training_step(model)
        loss = step.micro_batch(targets(3, width + 1), KEY).loss
        found.append((loss, window_gradients(step)))
    assert bool(computed) == (3 * width > 48)
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    assert_close(found[1][1], found[0][1])


class Wide(nn.Module):
    """Maps each position by itself, with inner arrays eight times as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 512), nn.Linear(512, 32)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down(mx.tanh(self.up(x)))


def test_inner_arrays_exist_for_one_chunk() -> None:
    """It is for nothing else: forward and backward. MLX starts some operations ahead, so there are many chunks."""
    module, x = Wide(), mx.random.normal((2, 4096, 32))
    mx.eval(module.parameters(), x)

    def peak(size: int) -> tuple[float, dict[str, np.ndarray]]:
        def loss(x: mx.array) -> mx.array:
            return mx.square(in_chunks(Wide.__call__, module, x, size)).sum()

        before = mx.get_active_memory()
        mx.reset_peak_memory()
        value, gradient = mx.value_and_grad(loss)(x)
        mx.eval(value, gradient)
        inner = x.nbytes * 16
        return (mx.get_peak_memory() - before) / inner, {"x": np.array(gradient), "loss": np.array(value)}

    (whole, expected), (parts, found) = peak(8192), peak(128)
    assert_close(found, expected)
    assert whole > 2
    assert parts < 0.75
