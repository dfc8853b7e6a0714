"""Small models and batches inside the test's own process, for tests of the training code itself."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models import gemma2, llama
from mlx_lm.tuner.utils import linear_to_lora_layers
from numpy.typing import NDArray

from qlora_engine.job.spec import JobSpec
from qlora_engine.training.dropout import DropoutKey, key_dropout
from qlora_engine.training.optimizer import build_optimizer
from qlora_engine.training.step import TrainingStep
from qlora_engine.training.targets import Targets
from qlora_engine.training.tree import flat

VOCABULARY = 64
LORA = {"rank": 4, "scale": 8.0, "dropout": 0.0}

Arrays = dict[str, NDArray[Any]]


def llama_model(*, layers: int = 2, hidden: int = 32, seed: int = 0, tied: bool = True) -> nn.Module:
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
            "tie_word_embeddings": tied,
        }
    )
    return _frozen(llama.Model(arguments))


def gemma2_model() -> nn.Module:
    """A model that caps its logits after the output layer."""
    mx.random.seed(0)
    arguments = gemma2.ModelArgs(
        model_type="gemma2",
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=64,
        num_attention_heads=4,
        head_dim=8,
        rms_norm_eps=1e-5,
        vocab_size=VOCABULARY,
        num_key_value_heads=2,
        final_logit_softcapping=3.0,  # so low that it bends the logits of this model
    )
    return _frozen(gemma2.Model(arguments))


class Unfamiliar(nn.Module):
    """A model whose output layer has a name that nobody looks for."""

    def __init__(self) -> None:
        super().__init__()
        self.body = llama_model().model
        self.readout = nn.Linear(32, VOCABULARY, bias=False)

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.readout(self.body(tokens))

    @property
    def layers(self) -> list[nn.Module]:
        layers: list[nn.Module] = self.body.layers
        return layers


def unfamiliar_model() -> nn.Module:
    """An `Unfamiliar`, frozen."""
    return _frozen(Unfamiliar())


def with_adapters(
    model: nn.Module,
    *,
    dropout: float = 0.0,
    source: DropoutKey | None = None,
    dora: bool = False,
    keys: list[str] | None = None,
    rank: int = 4,
) -> nn.Module:
    """`model` with LoRA or DoRA layers whose `lora_b` is not zero, so that every gradient matters."""
    mx.random.seed(2)
    config = {**LORA, "rank": rank, "dropout": dropout, **({"keys": keys} if keys else {})}
    linear_to_lora_layers(model, -1, config, use_dora=dora)
    mx.random.seed(1)
    for _, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = 0.05 * mx.random.normal(module.lora_b.shape)
    if source is not None:
        key_dropout(model, source)
    mx.eval(model.parameters())
    return model


def lora_model(*, dropout: float = 0.0, source: DropoutKey | None = None, **options: Any) -> nn.Module:
    """A llama with adapters; `options` are those of `llama_model`."""
    return with_adapters(llama_model(**options), dropout=dropout, source=source)


def training_step(model: nn.Module, *, dropout: DropoutKey | None = None, **keys: Any) -> TrainingStep:
    """A training step; `keys` are those of a job file, and `activations`, `compiled`, `joining`."""
    activations, compiled = keys.pop("activations", mx.float32), keys.pop("compiled", False)
    joining = keys.pop("joining", False)
    spec = JobSpec(**{"learning_rate": 1e-3, **keys})
    return TrainingStep(
        model,
        build_optimizer(spec),
        activations=activations,
        dropout=dropout or DropoutKey(),
        grad_clip=spec.grad_clip,
        max_loss=spec.max_loss,
        lora_plus_ratio=spec.lora_plus_ratio,
        compiled=compiled,
        joining=joining,
    )


def batch(rows: int, width: int, seed: int = 0) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Random tokens, and random lengths and masks of targets."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(1, VOCABULARY, (rows, width)).astype(np.int32)
    supervised = draw.random((rows, width)) < 0.6
    for row in range(rows):
        length = draw.integers(3, width + 1)
        tokens[row, length:], supervised[row, length:] = 0, False
    supervised[:, 0] = False
    return tokens, supervised


def targets(rows: int, width: int, seed: int = 0) -> Targets:
    """The same as a micro-batch."""
    return Targets.of(*batch(rows, width, seed))


def window_gradients(step: TrainingStep) -> Arrays:
    """Of the window so far, summed."""
    return {name: np.array(array) for name, array in flat(step.gradients).items()}


def masters(step: TrainingStep) -> Arrays:
    """The weights that are trained."""
    return {name: np.array(array) for name, array in flat(step.masters).items()}


def state(step: TrainingStep) -> Arrays:
    """All that a checkpoint holds of a step."""
    return {name: np.array(array) for name, array in step.state().items()}


def assert_close(left: Arrays, right: Arrays, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` of each array's largest element."""
    assert left.keys() == right.keys()
    for name, value in left.items():
        scale = max(float(np.abs(right[name]).max()), 1e-8)
        np.testing.assert_allclose(value, right[name], atol=tolerance * scale, rtol=0, err_msg=name)


def assert_same(left: Arrays, right: Arrays) -> None:
    """Equal to the bit."""
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == right[name].dtype, name
        assert value.tobytes() == right[name].tobytes(), name


def _frozen(model: nn.Module) -> nn.Module:
    mx.eval(model.parameters())
    model.freeze()
    return model
