"""The training step: sums over a window, one guarded update, and a state that can be put back."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx import nn
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.tuner.trainer import default_loss

from qlora_engine.training.dropout import DropoutKey, key_dropout, step_key
from qlora_engine.training.recompute import checkpoint_layers
from qlora_engine.training.step import TrainingStep
from qlora_engine.training.tree import flat
from support.small import VOCABULARY, batch, lora_model, training_step

OPTIMIZERS = ("adam", "adamw", "muon", "sgd", "adafactor")
CONFIG: dict[str, dict[str, Any]] = {"sgd": {"momentum": 0.9}}
KEY = mx.random.key(7)


def arrays(step: TrainingStep) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.array(array) for name, array in step.state().items()}


def gradients(step: TrainingStep) -> dict[str, np.ndarray[Any, Any]]:
    """Of the window so far, summed."""
    return {name: np.array(array) for name, array in flat(step._gradients).items()}


def assert_close(left: dict[str, Any], right: dict[str, Any], tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` of each array's largest element."""
    assert left.keys() == right.keys()
    for name, value in left.items():
        scale = max(float(np.abs(right[name]).max()), 1e-8)
        np.testing.assert_allclose(value, right[name], atol=tolerance * scale, rtol=0, err_msg=name)


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == right[name].dtype, name
        assert value.tobytes() == right[name].tobytes(), name


def unequal_window() -> tuple[mx.array, mx.array, list[slice]]:
    tokens, supervised = batch(10, 24, seed=3)
    return tokens, supervised, [slice(0, 1), slice(1, 4), slice(4, 5), slice(5, 10)]


def narrow(tokens: mx.array, supervised: mx.array) -> tuple[mx.array, mx.array]:
    """Without the columns that are padding in every row."""
    width = int(np.array(tokens).any(0).nonzero()[0].max()) + 1
    return tokens[:, :width], supervised[:, :width]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_window_of_unequal_micro_batches_is_one_batch_of_all_its_rows(optimizer: str) -> None:
    """How rows are dealt to micro-batches may not change what is learned; a mean of means would."""
    tokens, supervised, parts = unequal_window()
    keys = {"optimizer": optimizer, "optimizer_config": CONFIG}
    whole, split = training_step(lora_model(), **keys), training_step(lora_model(), **keys)
    loss, count = whole.micro_batch(tokens, supervised, KEY)
    sums = [split.micro_batch(*narrow(tokens[part], supervised[part]), KEY) for part in parts]
    assert sum(c for _, c in sums) == count
    assert len({c for _, c in sums}) > 1
    assert sum(s for s, _ in sums) == pytest.approx(loss, rel=1e-5)
    assert_close(gradients(split), gradients(whole))
    left, right = split.update(), whole.update()
    assert left.applied
    assert right.applied
    assert left.gradient_norm == pytest.approx(right.gradient_norm, rel=1e-5)
    # Adam divides a gradient by its own size, so where it is nearly nothing rounding decides the direction.
    assert_close(masters(split), masters(whole), 1e-5 if optimizer in ("sgd", "muon") else 1e-3)


def masters(step: TrainingStep) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.array(array) for name, array in flat(step.masters).items()}


def test_the_gradient_is_plain_autodiff_of_the_definition() -> None:
    """Casting, masters and summing may not stand between the definition of the loss and what is applied."""
    tokens, supervised, parts = unequal_window()
    step = training_step(lora_model(), optimizer="sgd", learning_rate=0.5)
    before = masters(step)
    for part in parts:
        step.micro_batch(tokens[part], supervised[part], KEY)
    step.update()
    model = lora_model()

    def mean_loss(parameters: Any) -> mx.array:
        model.update(parameters)
        logits = model(tokens[:, :-1])
        chosen = mx.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]
        weights = supervised[:, 1:].astype(mx.float32)
        return ((mx.logsumexp(logits, -1) - chosen) * weights).sum() / weights.sum()

    gradient = flat(mx.grad(mean_loss)(model.trainable_parameters()))
    assert_close({name: (before[name] - value) / 0.5 for name, value in masters(step).items()},
                 {name: np.array(value) for name, value in gradient.items()}, 2e-5)  # fmt: skip


def test_without_masks_or_padding_the_loss_is_that_of_mlx_lm() -> None:
    """A job that worked there must show the same numbers here."""
    tokens, _ = batch(3, 16)
    tokens = mx.maximum(tokens, 1)
    everything = mx.broadcast_to(mx.arange(16) > 0, (3, 16))
    model = lora_model()
    theirs, count = default_loss(model, tokens, mx.array([[0, 16]] * 3))
    loss, ours = training_step(model).micro_batch(tokens, everything, KEY)
    assert ours == count.item() == 45
    assert loss / ours == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_loss_that_is_not_a_number_changes_nothing(optimizer: str) -> None:
    """One overflow would otherwise turn every weight and moment into NaN for good."""
    tokens, supervised, _ = unequal_window()
    keys = {"optimizer": optimizer, "optimizer_config": CONFIG}
    step = training_step(lora_model(), **keys)
    step.micro_batch(tokens, supervised, KEY)
    assert step.update().applied
    healthy = arrays(step)
    model = step.sync_model()
    model.model.norm.weight = model.model.norm.weight * math.nan
    poisoned = training_step(model, **keys)
    poisoned.restore({name: mx.array(array) for name, array in healthy.items()})
    loss, _ = poisoned.micro_batch(tokens, supervised, KEY)
    assert math.isnan(loss)
    done = poisoned.update()
    assert not done.applied
    assert math.isnan(done.loss)
    assert_same(arrays(poisoned), healthy)


def test_one_bad_micro_batch_drops_its_window_and_no_other() -> None:
    """The window after a dropped one starts from nothing."""
    tokens, supervised, _ = unequal_window()
    step, clean = training_step(lora_model()), training_step(lora_model())
    step.micro_batch(tokens, supervised, KEY)
    step._loss = step._loss * math.inf
    assert not step.update().applied
    for each in (step, clean):
        each.micro_batch(tokens, supervised, KEY)
        assert each.update().applied
    assert_same(arrays(step), arrays(clean))


def test_a_window_without_a_target_applies_nothing() -> None:
    """Adam would move on momentum alone, and weight decay would shrink what nobody trained."""
    tokens, supervised, _ = unequal_window()
    step = training_step(lora_model(), optimizer="adamw")
    step.micro_batch(tokens, supervised, KEY)
    step.update()
    before = arrays(step)
    assert step.micro_batch(tokens, mx.zeros_like(supervised), KEY) == (0.0, 0)
    done = step.update()
    assert not done.applied
    assert (done.loss, done.gradient_norm) == (0.0, 0.0)
    assert_same(arrays(step), before)


def test_a_discarded_window_leaves_no_trace() -> None:
    """A window that a stop cut is trained again from its start."""
    tokens, supervised, parts = unequal_window()
    step, clean = training_step(lora_model()), training_step(lora_model())
    step.micro_batch(tokens[parts[1]], supervised[parts[1]], KEY)
    step.discard()
    for each in (step, clean):
        each.micro_batch(tokens, supervised, KEY)
        each.update()
    assert_same(arrays(step), arrays(clean))


def test_grad_clip_scales_the_mean_gradient_to_its_limit() -> None:
    """Clipping the sum, or each micro-batch, would depend on the layout."""
    tokens, supervised, _ = unequal_window()
    free = training_step(lora_model(), optimizer="sgd", learning_rate=1.0)
    before = masters(free)
    free.micro_batch(tokens, supervised, KEY)
    norm = free.update().gradient_norm
    clipped = training_step(lora_model(), optimizer="sgd", learning_rate=1.0, grad_clip=norm / 4)
    clipped.micro_batch(tokens, supervised, KEY)
    assert clipped.update().gradient_norm == pytest.approx(norm, rel=1e-6)  # reported before clipping
    loose = training_step(lora_model(), optimizer="sgd", learning_rate=1.0, grad_clip=norm * 4)
    loose.micro_batch(tokens, supervised, KEY)
    loose.update()

    def moved(step: TrainingStep) -> dict[str, Any]:
        return {name: value - before[name] for name, value in masters(step).items()}

    assert math.sqrt(sum((v**2).sum() for v in moved(free).values())) == pytest.approx(norm, rel=1e-4)
    assert math.sqrt(sum((v**2).sum() for v in moved(clipped).values())) == pytest.approx(norm / 4, rel=1e-3)
    assert_close(masters(loose), masters(free), 1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_that_is_saved_and_restored_goes_on_to_the_bit(optimizer: str) -> None:
    """Resume is exact or it is another run."""
    keys = {
        "optimizer": optimizer,
        "optimizer_config": CONFIG,
        "lr_schedule": {"name": "cosine_decay", "arguments": [1e-2, 5.0], "warmup": 2},
    }

    def train(step: TrainingStep, updates: range) -> list[float]:
        losses = []
        for update in updates:
            tokens, supervised = batch(3, 16, seed=update)
            losses.append(step.micro_batch(tokens, supervised, step_key(0, update))[0])
            losses.append(step.update().learning_rate)
        return losses

    def fresh() -> TrainingStep:
        source = DropoutKey()
        return training_step(lora_model(dropout=0.2, source=source), dropout=source, **keys)

    through = fresh()
    first = train(through, range(4))
    half = fresh()
    assert train(half, range(2)) == first[:4]
    saved = {name: mx.array(np.array(array)) for name, array in half.state().items()}
    resumed = fresh()
    train(resumed, range(7, 9))  # whatever it did before
    resumed.restore(saved)
    assert train(resumed, range(2, 4)) == first[4:]
    assert_same(arrays(resumed), arrays(through))


def test_a_state_that_lacks_an_array_is_not_restored() -> None:
    """A step that goes on with half a state trains something that nobody described."""
    step = training_step(lora_model())
    state = step.state()
    state.pop(next(name for name in state if name.startswith("optimizer.") and name.endswith(".v")))
    with pytest.raises(KeyError):
        step.restore(state)


def test_bfloat16_activations_keep_float32_masters_and_gradients() -> None:
    """In bfloat16 a small update is rounded away; in float32 activations are twice as large."""
    model = lora_model()
    model.apply(lambda array: array.astype(mx.bfloat16))
    seen: list[mx.Dtype] = []
    tokens, supervised, _ = unequal_window()
    step = training_step(model, activations=mx.bfloat16, optimizer="sgd", learning_rate=1e-4)
    norm = type(model.model.norm)

    class Spy(norm):  # type: ignore[misc, valid-type]
        def __call__(self, x: mx.array) -> mx.array:
            seen.append(x.dtype)
            return super().__call__(x)

    model.model.norm.__class__ = Spy
    before = masters(step)
    step.micro_batch(tokens, supervised, KEY)
    assert set(seen) == {mx.bfloat16}
    assert {array.dtype for array in flat(step._gradients).values()} == {mx.float32}
    step.update()
    assert {array.dtype for array in flat(step.masters).values()} == {mx.float32}
    moved = {name: value - before[name] for name, value in masters(step).items()}
    assert all(np.abs(value).max() > 0 for value in moved.values())
    assert {array.dtype for array in flat(step.sync_model().trainable_parameters()).values()} == {mx.bfloat16}


class Toy(nn.Module):
    """The smallest model with a layer to adapt and to recompute."""

    def __init__(self, source: DropoutKey) -> None:
        super().__init__()
        mx.random.seed(0)
        self.embed = nn.Embedding(VOCABULARY, 32)
        self.layer = nn.Linear(32, VOCABULARY)
        self.freeze()
        self.layer = LoRALinear.from_base(self.layer, r=4, dropout=0.3)
        self.layer.lora_b = 0.05 * mx.random.normal(self.layer.lora_b.shape)
        self.layer.linear.freeze()
        key_dropout(self, source)
        checkpoint_layers([self.layer])

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.layer(self.embed(tokens))


def test_a_compiled_step_agrees_with_a_plain_one() -> None:
    """Compiling is for speed; random state or the optimizer's left out of it would freeze them.

    Everything at once, since on the CPU MLX compiles with the system's C++ compiler, which takes seconds a kernel:
    a recomputed layer with dropout, a window of two, clipping, a dropped window, a state that is put back.
    """

    def train(compiled: bool) -> tuple[list[float], dict[str, Any], dict[str, Any]]:
        source = DropoutKey()
        model = Toy(source)
        keys = {"optimizer": "adamw", "learning_rate": 1e-2, "grad_clip": 1.0}
        step = training_step(model, dropout=source, compiled=compiled, **keys)
        losses = []
        for update in range(4):
            for part in range(2):
                tokens, supervised = batch(3, 16, seed=2 * update + part)
                losses.append(step.micro_batch(tokens, supervised, step_key(5, 2 * update + part))[0])
            if update == 1:
                saved, before = {name: mx.array(np.array(array)) for name, array in step.state().items()}, arrays(step)
                step._loss = step._loss * math.nan
                assert not step.update().applied
                assert_same(arrays(step), before)
            else:
                assert step.update().applied
            if update == 2:
                step.restore(saved)
        assert type(step.sync_model()) is type(model)
        return losses, masters(step), {name: np.array(a) for name, a in flat(model.trainable_parameters()).items()}

    plain, compiled = train(False), train(True)
    assert compiled[0] == pytest.approx(plain[0], rel=1e-4)
    assert_close(compiled[1], plain[1], 1e-3)
    assert_same(compiled[2], compiled[1])  # also after a compiled step left its tracers in the model


def test_the_learning_rate_follows_the_schedule_in_optimizer_steps() -> None:
    """Counting micro-batches would end a schedule early by the accumulation."""
    schedule = {"name": "linear_schedule", "arguments": [1.0, 0.0, 4.0]}
    step = training_step(lora_model(), optimizer="sgd", lr_schedule=schedule)
    expected = optim.schedulers.linear_schedule(1.0, 0.0, 4)
    tokens, supervised = batch(2, 8)
    for update in range(5):
        for _ in range(3):
            step.micro_batch(tokens, supervised, KEY)
        assert step.update().learning_rate == pytest.approx(float(expected(mx.array(update))))
