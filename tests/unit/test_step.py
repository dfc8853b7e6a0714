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
from qlora_engine.training.targets import Targets
from qlora_engine.training.tree import flat
from support.small import (
    VOCABULARY,
    Arrays,
    assert_close,
    assert_same,
    batch,
    lora_model,
    masters,
    state,
    targets,
    training_step,
    window_gradients,
)

OPTIMIZERS = ("adam", "adamw", "muon", "sgd", "adafactor")
CONFIG: dict[str, dict[str, Any]] = {"sgd": {"momentum": 0.9}}
KEY = step_key(7, 7)
WHOLE = targets(10, 24, seed=3)


def unequal_window() -> list[Targets]:
    tokens, supervised = batch(10, 24, seed=3)
    parts = [slice(0, 1), slice(1, 4), slice(4, 5), slice(5, 10)]
    return [Targets.of(tokens[part], supervised[part]) for part in parts]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_window_of_unequal_micro_batches_is_one_batch_of_all_its_rows(optimizer: str) -> None:
    """How rows are dealt to micro-batches may not change what is learned; a mean of means would."""
    keys = {"optimizer": optimizer, "optimizer_config": CONFIG}
    whole, split = training_step(lora_model(), **keys), training_step(lora_model(), **keys)
    one = whole.micro_batch(WHOLE, KEY)
    several = [split.micro_batch(part, KEY) for part in unequal_window()]
    assert sum(done.count for done in several) == one.count
    assert len({done.count for done in several}) > 1
    assert sum(done.loss for done in several) == pytest.approx(one.loss, rel=1e-5)
    assert_close(window_gradients(split), window_gradients(whole))
    left, right = split.update(), whole.update()
    assert left.applied
    assert right.applied
    assert left.count == right.count == one.count
    assert left.gradient_norm == pytest.approx(right.gradient_norm, rel=1e-5)
    # Adam divides a gradient by its own size, so where it is nearly nothing rounding decides the direction.
    assert_close(masters(split), masters(whole), 1e-5 if optimizer in ("sgd", "muon") else 1e-3)


def test_without_masks_or_padding_the_loss_is_that_of_mlx_lm() -> None:
    """A job that worked there must show the same numbers here."""
    tokens = np.maximum(batch(3, 16)[0], 1)
    model = lora_model()
    theirs, count = default_loss(model, mx.array(tokens), mx.array([[0, 16]] * 3))
    done = training_step(model).micro_batch(Targets.of(tokens, np.ones((3, 16), np.bool_)), KEY)
    assert done.count == count.item() == 45
    assert done.loss / done.count == pytest.approx(theirs.item(), rel=1e-5)


def spoiled(factor: float) -> nn.Module:
    model = lora_model()
    model.model.norm.weight = model.model.norm.weight * factor
    return model


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_nothing(optimizer: str, factor: float) -> None:
    """One overflow would otherwise turn every weight and moment into NaN for good."""
    keys = {"optimizer": optimizer, "optimizer_config": CONFIG}
    step = training_step(lora_model(), **keys)
    step.micro_batch(WHOLE, KEY)
    assert step.update().applied
    healthy = state(step)
    poisoned = training_step(spoiled(factor), **keys)
    poisoned.restore({name: mx.array(array) for name, array in healthy.items()})
    done = poisoned.micro_batch(WHOLE, KEY)
    assert not math.isfinite(done.loss)
    assert not done.good
    assert all(not gradient.any() for gradient in window_gradients(poisoned).values())
    update = poisoned.update()
    assert (update.applied, update.count) == (False, 0)
    assert_same(state(poisoned), healthy)


def test_a_bad_micro_batch_leaves_the_rest_of_its_window() -> None:
    """Only what is wrong is dropped: the others count as if it had never been there."""
    parts = [targets(2, 12, seed=seed) for seed in range(3)]
    done = [training_step(lora_model()).micro_batch(part, KEY) for part in parts]
    means = [each.loss / each.count for each in done]
    worst = means.index(max(means))
    step, clean = training_step(lora_model(), max_loss=0.9999 * max(means)), training_step(lora_model())
    for index, part in enumerate(parts):
        assert step.micro_batch(part, KEY).good is (index != worst)
        if index != worst:
            clean.micro_batch(part, KEY)
    assert step.update() == clean.update()
    assert_same(state(step), state(clean))


@pytest.mark.parametrize(("share", "good"), [(0.999, False), (1.001, True)])
def test_max_loss_is_a_limit_on_the_mean_over_targets(share: float, good: bool) -> None:
    """A limit on the sum would drop long rows for their length."""
    done = training_step(lora_model()).micro_batch(WHOLE, KEY)
    limited = training_step(lora_model(), max_loss=share * done.loss / done.count)
    assert limited.micro_batch(WHOLE, KEY).good is good


def test_an_update_that_overflows_is_not_applied() -> None:
    """Finite gradients and an absurd rate: the weights would be infinite."""
    step = training_step(lora_model(), optimizer="sgd", learning_rate=1e38)
    before = state(step)
    for part in unequal_window():
        assert step.micro_batch(part, KEY).good
    update = step.update()
    assert not update.applied
    assert update.count == WHOLE.count
    assert math.isfinite(update.gradient_norm)
    assert_same(state(step), before)


def test_a_window_without_a_target_applies_nothing() -> None:
    """Adam would move on momentum alone, and weight decay would shrink what nobody trained."""
    tokens, supervised = batch(10, 24, seed=3)
    step = training_step(lora_model(), optimizer="adamw")
    step.micro_batch(Targets.of(tokens, supervised), KEY)
    step.update()
    before = state(step)
    done = step.micro_batch(Targets.of(tokens, np.zeros_like(supervised)), KEY)
    assert (done.loss, done.count, done.good) == (0.0, 0, True)
    update = step.update()
    assert (update.applied, update.count, update.gradient_norm) == (False, 0, 0.0)
    assert_same(state(step), before)


def test_a_discarded_window_leaves_no_trace() -> None:
    """A window that a stop cut is trained again from its start."""
    step, clean = training_step(lora_model()), training_step(lora_model())
    step.micro_batch(unequal_window()[1], KEY)
    step.discard()
    for each in (step, clean):
        each.micro_batch(WHOLE, KEY)
        each.update()
    assert_same(state(step), state(clean))


def moved(step: TrainingStep, before: Arrays) -> Arrays:
    return {name: value - before[name] for name, value in masters(step).items()}


def after_one_update(step: TrainingStep) -> Arrays:
    """How far each array moved."""
    before = masters(step)
    step.micro_batch(WHOLE, KEY)
    assert step.update().applied
    return moved(step, before)


def test_grad_clip_scales_the_mean_gradient_to_its_limit() -> None:
    """Clipping the sum, or each micro-batch, would depend on the layout."""
    keys: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 1.0}
    free = training_step(lora_model(), **keys)
    norm = training_step(lora_model(), **keys).micro_batch(WHOLE, KEY).gradient_norm
    clipped = training_step(lora_model(), grad_clip=norm / 4, **keys)
    loose = training_step(lora_model(), grad_clip=norm * 4, **keys)
    distances = [after_one_update(step) for step in (free, clipped, loose)]

    def length(distance: Arrays) -> float:
        return math.sqrt(sum((v**2).sum() for v in distance.values()))

    assert length(distances[0]) == pytest.approx(norm, rel=1e-4)
    assert length(distances[1]) == pytest.approx(norm / 4, rel=1e-3)
    assert_close(distances[2], distances[0], 1e-6)
    clipped.micro_batch(WHOLE, KEY)
    assert clipped.update().gradient_norm > norm / 2  # reported before clipping


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_guard_s_factor_is_a_factor_of_the_learning_rate(optimizer: str) -> None:
    """A rollback halves the rate: of every optimizer, its moments untouched, and in what is reported."""
    keys = {"optimizer": optimizer, "optimizer_config": CONFIG | {"adamw": {"weight_decay": 0.1}}}
    full = training_step(lora_model(), learning_rate=1e-2, **keys)
    half = training_step(lora_model(), learning_rate=1e-2, **keys)
    half.rate_factor = 0.5
    distances = [after_one_update(step) for step in (full, half)]
    assert_close(distances[1], {name: 0.5 * value for name, value in distances[0].items()}, 1e-4)
    left, right = (
        {name: array for name, array in state(step).items() if name.startswith("optimizer.")} for step in (full, half)
    )
    assert_same(left, right)
    half.micro_batch(WHOLE, KEY)
    full.micro_batch(WHOLE, KEY)
    assert half.update().learning_rate == pytest.approx(0.5 * full.update().learning_rate)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_lora_plus_moves_b_that_many_times_as_far(optimizer: str) -> None:
    """LoRA+: the matrices B learn at a higher rate, the rest at the job's."""
    keys: dict[str, Any] = {"optimizer": optimizer, "learning_rate": 1e-3}
    plain = after_one_update(training_step(lora_model(), **keys))
    plus = after_one_update(training_step(lora_model(), lora_plus_ratio=16.0, **keys))
    assert {name.rsplit(".", 1)[-1] for name in plain} == {"lora_a", "lora_b"}
    expected = {name: (16.0 if name.endswith("lora_b") else 1.0) * value for name, value in plain.items()}
    assert_close(plus, expected, 1e-4)
    lowered = training_step(lora_model(), lora_plus_ratio=16.0, **keys)
    lowered.rate_factor = 0.5  # after a rollback, too
    assert_close(after_one_update(lowered), {name: 0.5 * value for name, value in expected.items()}, 2e-3)


@pytest.mark.parametrize("schedule", ["cosine_decay", "linear_schedule", "exponential_decay", "step_decay"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_that_is_saved_and_restored_goes_on_to_the_bit(optimizer: str, schedule: str) -> None:
    """Resume is exact or it is another run: optimizer, schedule, warmup and dropout."""
    arguments = {
        "cosine_decay": [1e-2, 5.0],
        "linear_schedule": [1e-2, 1e-3, 5.0],
        "exponential_decay": [1e-2, 0.9],
        "step_decay": [1e-2, 0.5, 2.0],
    }
    keys = {
        "optimizer": optimizer,
        "optimizer_config": CONFIG,
        "lr_schedule": {"name": schedule, "arguments": arguments[schedule], "warmup": 2},
        "lora_plus_ratio": 2.0,
    }

    def train(step: TrainingStep, updates: range) -> list[float]:
        losses = []
        for update in updates:
            losses.append(step.micro_batch(targets(3, 16, seed=update), step_key(0, update)).loss)
            losses.append(step.update().learning_rate)
        return losses

    def fresh() -> TrainingStep:
        source = DropoutKey()
        return training_step(lora_model(dropout=0.2, source=source, layers=1, hidden=16), dropout=source, **keys)

    through = fresh()
    first = train(through, range(5))
    assert len(set(first[1::2])) > 2  # the rate changes
    half = fresh()
    assert train(half, range(2)) == first[:4]
    saved = {name: mx.array(array) for name, array in state(half).items()}
    resumed = fresh()
    train(resumed, range(7, 9))  # whatever it did before
    resumed.restore(saved)
    assert train(resumed, range(2, 5)) == first[4:]
    assert_same(state(resumed), state(through))


def test_a_state_that_lacks_an_array_is_not_restored() -> None:
    """A step that goes on with half a state trains something that nobody described."""
    step = training_step(lora_model())
    arrays = step.state()
    arrays.pop(next(name for name in arrays if name.startswith("optimizer.") and name.endswith(".v")))
    with pytest.raises(KeyError):
        step.restore(arrays)


def test_bfloat16_activations_keep_float32_masters_and_gradients() -> None:
    """In bfloat16 a small update is rounded away; in float32 activations are twice as large."""
    model = lora_model()
    model.apply(lambda array: array.astype(mx.bfloat16))
    seen: list[mx.Dtype] = []
    step = training_step(model, activations=mx.bfloat16, optimizer="sgd", learning_rate=1e-4)
    norm = type(model.model.norm)

    class Spy(norm):  # type: ignore[misc, valid-type]
        def __call__(self, x: mx.array) -> mx.array:
            seen.append(x.dtype)
            return super().__call__(x)

    model.model.norm.__class__ = Spy
    before = masters(step)
    step.micro_batch(WHOLE, KEY)
    assert set(seen) == {mx.bfloat16}
    assert {array.dtype for array in window_gradients(step).values()} == {np.dtype(np.float32)}
    step.update()
    assert {array.dtype for array in flat(step.masters).values()} == {mx.float32}
    assert all(np.abs(value).max() > 0 for value in moved(step, before).values())
    assert {array.dtype for array in flat(step.sync_model().trainable_parameters()).values()} == {mx.bfloat16}


class Toy(nn.Module):
    """The smallest model with a layer to adapt and to recompute."""

    def __init__(self, source: DropoutKey) -> None:
        super().__init__()
        mx.random.seed(0)
        self.embed = nn.Embedding(VOCABULARY, 32)
        self.layer = nn.Linear(32, 32)
        self.lm_head = nn.Linear(32, VOCABULARY)
        self.lm_head.bias[0] = -100.0  # a target of 0 has a loss of some 100, which `batch` never draws
        self.freeze()
        self.layer = LoRALinear.from_base(self.layer, r=4, dropout=0.3)
        self.layer.lora_b = 0.05 * mx.random.normal(self.layer.lora_b.shape)
        self.layer.linear.freeze()
        key_dropout(self, source)
        checkpoint_layers([self.layer])

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.lm_head(self.layer(self.embed(tokens)))


def test_a_compiled_step_agrees_with_a_plain_one() -> None:
    """Compiling is for speed; random state or the optimizer's left out of it would freeze them.

    Everything at once, since on the CPU MLX compiles with the system's C++ compiler, which takes seconds a kernel:
    a recomputed layer with dropout, a window of two, clipping, a lowered rate, a dropped micro-batch, a state that
    is put back.
    """
    bad = targets(3, 16, seed=0)
    bad.tokens[:] = 0

    def train(compiled: bool) -> tuple[list[float], Arrays, Arrays]:
        source = DropoutKey()
        model = Toy(source)
        step = training_step(
            model,
            dropout=source,
            compiled=compiled,
            optimizer="adamw",
            learning_rate=1e-2,
            grad_clip=1.0,
            max_loss=50.0,
        )
        assert step.compiles(bad) is compiled
        losses = []
        for update in range(4):
            for part in range(2):
                done = step.micro_batch(targets(3, 16, seed=2 * update + part), step_key(5, 2 * update + part))
                assert done.good
                losses.append(done.loss)
            assert not step.compiles(bad)  # its shape has been seen
            if update == 1:
                saved, before = {name: mx.array(array) for name, array in state(step).items()}, state(step)
                step.discard()
                assert not step.micro_batch(bad, step_key(5, 0)).good
                assert not step.update().applied
                assert_same(state(step), before)
                step.rate_factor = 0.5
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
    step = training_step(lora_model(layers=1), optimizer="sgd", lr_schedule=schedule)
    expected = optim.schedulers.linear_schedule(1.0, 0.0, 4)
    for update in range(5):
        for _ in range(3):
            step.micro_batch(targets(2, 8), KEY)
        assert step.update().learning_rate == pytest.approx(float(expected(mx.array(update))))


def test_steps_leave_no_graph_behind() -> None:
    """A graph that grows with each micro-batch is how training froze at step 0 and ran out of memory later."""
    step = training_step(lora_model())
    sizes = []
    for _ in range(6):
        step.micro_batch(WHOLE, KEY)
        sizes.append(mx.get_active_memory())
    assert max(sizes[2:]) - sizes[1] < 1024
