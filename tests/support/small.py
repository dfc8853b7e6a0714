"""Small models and batches inside the test's own process, for tests of the training code itself."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models import llama
from mlx_lm.tuner.utils import linear_to_lora_layers

from qlora_engine.job.spec import JobSpec
from qlora_engine.training.dropout import DropoutKey, key_dropout
from qlora_engine.training.optimizer import build_optimizer
from qlora_engine.training.step import TrainingStep

VOCABULARY = 64
LORA = {"rank": 4, "scale": 8.0, "dropout": 0.0}


def llama_model(*, layers: int = 2, hidden: int = 32, seed: int = 0) -> nn.Module:
    """A llama with random weights, all of them frozen."""
    mx.random.seed(seed)
    arguments = llama.ModelArgs.from_dict(
        {
            "model_type": "llama",
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "intermediate_size": 2 * hidden,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "vocab_size": VOCABULARY,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
        }
    )
    model = llama.Model(arguments)
    mx.eval(model.parameters())
    model.freeze()
    return model


def lora_model(*, dropout: float = 0.0, source: DropoutKey | None = None, **options: Any) -> nn.Module:
    """The same with LoRA layers whose `lora_b` is not zero, so that every gradient matters."""
    model = llama_model(**options)
    linear_to_lora_layers(model, -1, {**LORA, "dropout": dropout})
    mx.random.seed(1)
    for _, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = 0.05 * mx.random.normal(module.lora_b.shape)
    if source is not None:
        key_dropout(model, source)
    mx.eval(model.parameters())
    return model


def training_step(model: nn.Module, *, dropout: DropoutKey | None = None, **keys: Any) -> TrainingStep:
    """A training step; `keys` are those of a job file, and `activations` and `compiled`."""
    activations, compiled = keys.pop("activations", mx.float32), keys.pop("compiled", False)
    spec = JobSpec(**{"learning_rate": 1e-3, **keys})
    return TrainingStep(
        model,
        build_optimizer(spec),
        activations=activations,
        dropout=dropout or DropoutKey(),
        grad_clip=spec.grad_clip,
        compiled=compiled,
    )


def batch(rows: int, width: int, seed: int = 0) -> tuple[mx.array, mx.array]:
    """Random tokens, and random lengths and masks of targets."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(1, VOCABULARY, (rows, width)).astype(np.int32)
    supervised = draw.random((rows, width)) < 0.6
    for row in range(rows):
        length = draw.integers(3, width + 1)
        tokens[row, length:], supervised[row, length:] = 0, False
    supervised[:, 0] = False
    return mx.array(tokens), mx.array(supervised)
