"""Trained arrays in long vectors: what an optimizer does to them is what it does to each."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from qlora_engine.training import grouping as module
from qlora_engine.training.grouping import Grouping
from qlora_engine.training.lowrank import replace_lora
from qlora_engine.training.optimizer import OPTIMIZERS
from qlora_engine.training.tree import flat
from qlora_engine.training.vectors import ALIGNED
from support.small import assert_same, llama_model, with_adapters


@pytest.mark.parametrize(
    ("optimizer", "joined"), [("adamw", True), ("sgd", True), ("muon", False), ("adafactor", False)]
)
def test_arrays_come_back_as_they_were(optimizer: str, joined: bool) -> None:
    """Every one at an aligned place of few vectors, or by itself where the optimizer looks at whole matrices."""
    model = with_adapters(llama_model())
    replace_lora(model)
    grouping = Grouping(model, OPTIMIZERS[optimizer](learning_rate=1e-3), mx.float32)
    arrays = flat(model.trainable_parameters())
    made = grouping.join(model.trainable_parameters())
    assert len(made) == (2 if joined else len(arrays))
    back = grouping.apart(made)
    assert_same({n: np.array(a) for n, a in back.items()}, {n: np.array(a) for n, a in arrays.items()})
    assert all(leaf.start % ALIGNED == 0 for group in grouping.groups.values() for leaf in group.leaves)
    with pytest.raises(KeyError):
        grouping.join_flat(dict(list(arrays.items())[1:]))


def test_vectors_are_not_too_long_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten of them are there at once in an update."""
    model = with_adapters(llama_model())
    replace_lora(model)
    sizes = []
    for longest in (600, 1 << 20):
        monkeypatch.setattr(module, "LONGEST", longest)
        grouping = Grouping(model, OPTIMIZERS["adamw"](learning_rate=1e-3), mx.float32)
        arrays = {n: np.array(a) for n, a in flat(model.trainable_parameters()).items()}
        assert_same(
            {n: np.array(a) for n, a in grouping.apart(grouping.join(model.trainable_parameters())).items()}, arrays
        )
        sizes.append(sorted(group.length for group in grouping.groups.values()))
    assert len(sizes[0]) > len(sizes[1]) == 2
    assert sizes[0][-1] <= 600 + max(array.size for array in arrays.values())


def test_what_lies_between_arrays_stays_zero() -> None:
    """It is trained with the rest: a gradient there would move it, and a weight there would count in the norm."""
    model = with_adapters(llama_model(hidden=40))
    replace_lora(model)
    grouping = Grouping(model, OPTIMIZERS["adamw"](learning_rate=1e-3), mx.float32)
    made = grouping.join(model.trainable_parameters())
    size = sum(array.size for array in flat(model.trainable_parameters()).values())
    assert sum(vector.size for vector in made.values()) > size

    gradients = grouping.gradients({path: mx.ones_like(piece) for path, piece in grouping.pieces(made).items()})
    assert sum(int((g != 0).sum()) for g in gradients.values()) == size


def test_layers_of_another_scale_have_their_own_vector() -> None:
    """The scale is a factor of the whole vector."""
    model = with_adapters(llama_model())
    replace_lora(model)
    model.layers[0].self_attn.q_proj.scale = 7.0
    grouping = Grouping(model, OPTIMIZERS["adamw"](learning_rate=1e-3), mx.float32)
    assert len(grouping.groups) == 3
    made = grouping.join(model.trainable_parameters())
    folded, plain = grouping.pieces(made), grouping.apart(made)
    name = "self_attn.q_proj.lora_b"
    ratios = [float((folded[f"model.layers.{n}.{name}"] / plain[f"model.layers.{n}.{name}"]).mean()) for n in (0, 1)]
    assert ratios == pytest.approx([7.0, model.layers[1].self_attn.q_proj.scale])
