"""Keyed dropout and gradient checkpointing: the gradients are those of the network that was evaluated."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from qlora_engine.training.dropout import DropoutKey, KeyedDropout, key_dropout, slice_key, step_key
from qlora_engine.training.head import Head
from qlora_engine.training.recompute import checkpoint_layers
from qlora_engine.training.tree import flat
from support.small import Arrays, assert_close, llama_model, lora_model, targets, training_step, window_gradients


def masks(*, step: int, layer: int, seed: int = 0, p: float = 0.4) -> np.ndarray[Any, Any]:
    source = DropoutKey()
    source.key = step_key(seed, step)
    return np.array(KeyedDropout(p, layer, source)(mx.ones((64, 64))))


def test_a_mask_is_a_function_of_seed_step_and_layer() -> None:
    """A resumed run must draw the masks that the undisturbed one drew."""
    mx.random.seed(1)
    first = masks(step=3, layer=2)
    mx.random.seed(99)
    assert np.array_equal(first, masks(step=3, layer=2))


def test_masks_of_other_steps_layers_and_seeds_are_independent() -> None:
    """Layers that drop the same units, or steps that repeat, regularize less than the job asked for."""
    places = [(seed, step, layer) for seed in (0, 1, 2) for step in (0, 1, 2, 17) for layer in (0, 1, 2, 17)]
    drawn = [masks(seed=seed, step=step, layer=layer).ravel() > 0 for seed, step, layer in places]
    correlation = np.corrcoef(np.array(drawn, float))
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 0.08  # 4,096 elements: five standard deviations


def test_the_mean_is_kept_and_p_is_the_share_dropped() -> None:
    """Evaluation runs without dropout and must see activations of the same size."""
    drawn = np.stack([masks(step=step, layer=0, p=0.25) for step in range(40)])
    assert set(np.unique(drawn)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (drawn == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert drawn.mean() == pytest.approx(1.0, abs=0.01)


def test_evaluation_drops_nothing_and_the_type_is_kept() -> None:
    """A float32 factor would promote every activation after it."""
    layer = KeyedDropout(0.5, 0, DropoutKey())
    x = mx.random.normal((8, 8)).astype(mx.bfloat16)
    assert layer(x).dtype == mx.bfloat16
    layer.eval()
    assert mx.array_equal(layer(x), x)


def test_every_adapter_gets_a_dropout_of_its_own() -> None:
    """A layer left with stock dropout would be neither resumable nor right under recomputation."""
    model, source = lora_model(dropout=0.1), DropoutKey()
    assert key_dropout(model, source) == 14  # seven linear layers in each of two
    left = [module for _, module in model.named_modules() if isinstance(module, nn.Dropout)]
    keyed = [module for _, module in model.named_modules() if isinstance(module, KeyedDropout)]
    assert left == []
    assert sorted(module._layer for module in keyed) == list(range(14))
    assert {round(module._p, 6) for module in keyed} == {0.1}
    assert key_dropout(lora_model(dropout=0.0), source) == 0


def test_slices_of_a_micro_batch_have_masks_of_their_own() -> None:
    """A ladder that computes it in parts may not drop the same units in each; whole, its masks stay as they were."""
    whole = step_key(0, 3)
    keys = [np.array(slice_key(whole, index)).tolist() for index in range(8)]
    assert keys[0] == np.array(whole).tolist()
    assert len({tuple(key) for key in keys}) == 8
    others = {tuple(np.array(step_key(0, step)).tolist()) for step in range(100)} - {tuple(keys[0])}
    assert not others & {tuple(key) for key in keys}


def gradients(*, recompute: bool, dropout: float) -> Arrays:
    source = DropoutKey()
    model = lora_model(dropout=dropout, source=source)
    if recompute:
        checkpoint_layers(model.layers)
    step = training_step(model, dropout=source)
    step.micro_batch(targets(3, 16), step_key(0, 4))
    return window_gradients(step)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_recomputation_changes_no_gradient(dropout: float) -> None:
    """Stock dropout is drawn anew when a layer is recomputed: its gradients belong to no network."""
    plain = gradients(recompute=False, dropout=dropout)
    again = gradients(recompute=True, dropout=dropout)
    assert_close(again, plain)


def test_gradients_under_recomputation_agree_with_finite_differences() -> None:
    """The proof that needs no other autodiff: mlx_lm's own comes out 1.7 times too large here."""
    source = DropoutKey()
    model = lora_model(dropout=0.4, source=source)
    checkpoint_layers(model.layers)
    step = training_step(model, dropout=source)
    key = step_key(0, 4)
    step.micro_batch(targets(4, 16), key)
    gradient = {name: mx.array(array) for name, array in window_gradients(step).items()}
    direction = {name: mx.random.normal(g.shape, key=mx.random.key(i)) for i, (name, g) in enumerate(gradient.items())}
    along = sum(float((gradient[name] * direction[name]).sum()) for name in gradient)

    def loss_at(distance: float) -> float:
        state = step.state()
        moved = {f"masters.{name}": state[f"masters.{name}"] + distance * d for name, d in direction.items()}
        probe = training_step(model, dropout=source)
        probe.restore({**probe.state(), **moved})
        return probe.micro_batch(targets(4, 16), key).loss

    distance = 1e-3
    measured = (loss_at(distance) - loss_at(-distance)) / (2 * distance)
    assert measured == pytest.approx(along, rel=1e-2)


def test_checkpointing_twice_is_checkpointing_once() -> None:
    """mlx_lm nests it, and each level computes the layer once more."""
    model = lora_model()
    checkpoint_layers(model.layers)
    once = [type(layer) for layer in model.layers]
    checkpoint_layers(model.layers)
    assert [type(layer) for layer in model.layers] == once


def test_checkpointing_reaches_no_other_model_and_renames_nothing() -> None:
    """Patching the class would change every later job and every parameter's path could move."""
    mine, other = lora_model(), lora_model()
    before = list(flat(mine.parameters()))
    kind = type(mine.layers[0])
    call = kind.__call__
    checkpoint_layers(mine.layers[:1])
    assert kind.__call__ is call
    assert type(mine.layers[1]) is kind
    assert {type(layer) for layer in other.layers} == {kind}
    assert isinstance(mine.layers[0], kind)
    assert list(flat(mine.parameters())) == before


def test_recomputation_saves_memory() -> None:
    """It is for nothing else."""

    def peak(recompute: bool) -> int:
        model = lora_model(layers=8)
        if recompute:
            checkpoint_layers(model.layers)
        step = training_step(model)
        step.micro_batch(targets(4, 65), step_key(0, 0))
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        step.micro_batch(targets(4, 65), step_key(0, 0))
        return mx.get_peak_memory() - before

    assert peak(True) < 0.6 * peak(False)


def test_evaluation_of_a_checkpointed_model_is_that_of_a_plain_one() -> None:
    """Validation uses the same layers."""
    plain, checkpointed = llama_model(), llama_model()
    checkpoint_layers(checkpointed.layers)
    losses = [Head(model).loss(*targets(2, 16).arrays()).item() for model in (plain, checkpointed)]
    assert losses[0] == losses[1]
