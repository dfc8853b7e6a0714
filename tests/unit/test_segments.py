"""Documents that share a row: the same gradients as alone, and the models that cannot do it."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.models import gpt2, llama, phi3, qwen2, qwen3

from qlora_engine.training import segments
from qlora_engine.training.data import Document
from qlora_engine.training.recompute import checkpoint_layers
from qlora_engine.training.segments import why_not_joined
from qlora_engine.training.targets import Targets
from support.small import (
    VOCABULARY,
    assert_close,
    gemma2_model,
    llama_model,
    training_step,
    unfamiliar_model,
    window_gradients,
    with_adapters,
)

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def family(module: Any, name: str, **more: Any) -> nn.Module:
    """A small model of a family, with random weights."""
    mx.random.seed(0)
    model: nn.Module = module.Model(module.ModelArgs.from_dict({"model_type": name, **SIZES, **more}))
    mx.eval(model.parameters())
    model.freeze()
    return model


def sliding_llama() -> nn.Module:
    """One whose second layer sees few positions back."""
    kinds = ["full_attention", "sliding_attention"]
    return family(llama, "llama", layer_types=kinds, sliding_window=6)


JOINS = {
    "llama": llama_model,
    "llama with a sliding window": sliding_llama,
    "qwen2": lambda: family(qwen2, "qwen2"),
    "qwen3": lambda: family(qwen3, "qwen3", head_dim=8, max_position_embeddings=512),
    "phi3": lambda: family(phi3, "phi3"),
}


def documents() -> list[Document]:
    draw = np.random.default_rng(5)
    made = []
    for length in (9, 14, 3, 21, 2):
        supervised = draw.random(length) < 0.7
        supervised[0] = False
        made.append(Document(draw.integers(1, VOCABULARY, length).astype(np.int32), supervised))
    return made


@pytest.mark.parametrize("name", JOINS)
@pytest.mark.parametrize(("recompute", "added"), [(False, False), (True, False), (False, True)])
def test_joined_documents_give_the_gradients_of_each_alone(
    name: str, recompute: bool, added: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing is for speed: it may change nothing that is learned, with either kind of mask."""
    monkeypatch.setattr(segments, "on_cuda", lambda: added)
    rows = documents()
    layouts = [[[row] for row in rows], [[rows[0], rows[2], rows[4]], [rows[1], rows[3]]], [rows]]
    found = []
    for layout in layouts:
        model = with_adapters(JOINS[name]())
        if recompute:
            checkpoint_layers(model.layers)
        model.train()
        step = training_step(model)
        done = step.micro_batch(Targets.joined(layout, 48), mx.random.key(0))
        found.append((done.loss, window_gradients(step)))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert_close(gradients, found[0][1], 2e-5)


@pytest.mark.parametrize("name", JOINS)
def test_models_with_relative_positions_join(name: str) -> None:
    """A model that is told apart wrongly trains on padding for nothing."""
    assert why_not_joined(JOINS[name](), name, VOCABULARY) is None


def gpt2_model() -> nn.Module:
    """Positions are learned vectors."""
    mx.random.seed(0)
    arguments = gpt2.ModelArgs(
        model_type="gpt2", n_ctx=64, n_embd=32, n_head=4, n_layer=2, n_positions=64, layer_norm_epsilon=1e-5,
        vocab_size=VOCABULARY,
    )  # fmt: skip
    return gpt2.Model(arguments)


@pytest.mark.parametrize("model_type", ["gpt2", "of another name"])
def test_absolute_positions_do_not_join(model_type: str) -> None:
    """The second document of a row would be trained at positions that it never has."""
    assert why_not_joined(gpt2_model(), model_type, VOCABULARY) is not None


def test_a_model_whose_mask_is_that_of_one_row_does_not_join() -> None:
    """gemma2 broadcasts a mask over its heads in a way that takes the rows' masks for the heads'."""
    assert why_not_joined(gemma2_model(), "gemma2", VOCABULARY) is not None


def test_a_model_that_takes_no_cache_does_not_join() -> None:
    """It would raise in the middle of a run."""
    assert "do not take a row of several" in str(why_not_joined(unfamiliar_model(), "unfamiliar", VOCABULARY))


class Remembers(nn.Module):
    """A recurrent model, which takes a cache and heeds no mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 16)
        self.recurrent = nn.GRU(16, 16)
        self.out = nn.Linear(16, VOCABULARY)
        self.layers = [self.recurrent]

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        return self.out(4 * self.recurrent(self.embed(tokens)))


def test_a_model_that_remembers_does_not_join() -> None:
    """What a state-space layer has seen of one document would reach into the next."""
    mx.random.seed(0)
    assert why_not_joined(Remembers(), "recurrent", VOCABULARY) == "its layers carry one document into the next"
