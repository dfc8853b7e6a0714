"""The output layer sees the rows that have a target, and the gradients are those of plain autodiff all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear
from numpy.typing import NDArray

from qlora_engine.training import frozen, loss
from qlora_engine.training.dropout import DropoutKey, slice_key, step_key
from qlora_engine.training.frozen import Ways
from qlora_engine.training.head import Head
from qlora_engine.training.recompute import checkpoint_layers
from qlora_engine.training.targets import Targets
from qlora_engine.training.unpack import unpack
from support.small import (
    VOCABULARY,
    Arrays,
    assert_close,
    batch,
    gemma2_model,
    llama_model,
    training_step,
    unfamiliar_model,
    window_gradients,
    with_adapters,
)

Part = tuple[NDArray[np.int32], NDArray[np.bool_], mx.array]  # tokens, targets, dropout key
PARTS = [slice(0, 1), slice(1, 4), slice(4, 5), slice(5, 10)]

MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "tied head": (llama_model, {}),
    "untied head": (lambda: llama_model(tied=False), {}),
    "head with LoRA": (lambda: llama_model(tied=False), {"keys": ["lm_head", "self_attn.q_proj"]}),
    "head with DoRA": (lambda: llama_model(tied=False), {"keys": ["lm_head", "self_attn.q_proj"], "dora": True}),
    "tied head with LoRA": (llama_model, {"keys": ["model.embed_tokens", "self_attn.q_proj"]}),
    "tied head with DoRA": (llama_model, {"keys": ["model.embed_tokens", "self_attn.q_proj"], "dora": True}),
    "DoRA": (llama_model, {"dora": True}),
    "capped logits": (gemma2_model, {}),
    "capped logits, head with LoRA": (gemma2_model, {"keys": ["model.embed_tokens", "self_attn.q_proj"]}),
    "head not found": (unfamiliar_model, {}),
}


def narrow(tokens: NDArray[np.int32], supervised: NDArray[np.bool_]) -> Targets:
    """Without the columns that are padding in every row."""
    width = int(tokens.any(0).nonzero()[0].max()) + 1
    return Targets.of(tokens[:, :width], supervised[:, :width])


def plain_autodiff(model: nn.Module, source: DropoutKey, parts: list[Part]) -> tuple[Arrays, float]:
    """The definition: -log softmax by hand, of every row, the mean over all targets. With its gradients."""

    def mean_loss(parameters: Any) -> mx.array:
        model.update(parameters)
        total, count = mx.array(0.0), 0
        for tokens, supervised, key in parts:
            source.key = key
            logits = model(mx.array(tokens[:, :-1]))
            exponentials = mx.exp(logits - logits.max(-1, keepdims=True))
            log_softmax = mx.log(exponentials / exponentials.sum(-1, keepdims=True))
            picked = mx.take_along_axis(log_softmax, mx.array(tokens[:, 1:, None]), -1)[..., 0]
            total = total - (picked * supervised[:, 1:].astype(np.float32)).sum()
            count += int(supervised[:, 1:].sum())
        return total / count

    value, gradient = mx.value_and_grad(mean_loss)(model.trainable_parameters())
    leaves: Any = tree_flatten(gradient)
    return {name: np.array(array) for name, array in leaves}, float(value)


def of_window(model: nn.Module, source: DropoutKey, parts: list[tuple[Targets, mx.array]]) -> tuple[Arrays, float]:
    """The mean gradients and loss of a window, as the step makes them."""
    step = training_step(model, dropout=source)
    done = [step.micro_batch(targets, key) for targets, key in parts]
    assert all(each.good for each in done)
    count = sum(each.count for each in done)
    return {name: g / count for name, g in window_gradients(step).items()}, sum(each.loss for each in done) / count


@pytest.mark.parametrize("chunk", [8, 10_000], ids=["chunks", "whole"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_window_gives_the_gradients_of_one_batch_and_of_the_definition(
    kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither micro-batches, nor which rows are projected, nor chunks may change what is learned."""
    monkeypatch.setattr(loss, "LOGITS_BYTES", 4 * VOCABULARY * chunk)
    make, options = MODELS[kind]
    source, key = DropoutKey(), step_key(0, 0)
    tokens, supervised = batch(10, 24, seed=3)
    parts = [(narrow(tokens[part], supervised[part]), key) for part in PARTS]
    assert len({targets.count for targets, _ in parts}) > 2
    split = of_window(with_adapters(make(), **options), source, parts)
    whole = of_window(with_adapters(make(), **options), source, [(Targets.of(tokens, supervised), key)])
    exact = plain_autodiff(with_adapters(make(), **options), source, [(tokens, supervised, key)])
    assert split[1] == pytest.approx(exact[1], rel=1e-5)
    assert whole[1] == pytest.approx(exact[1], rel=1e-5)
    assert all(np.abs(gradient).max() > 0 for gradient in exact[0].values())
    assert_close(split[0], whole[0])
    assert_close(split[0], exact[0])
    assert_close(whole[0], exact[0])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_with_keyed_dropout_the_gradients_are_those_of_the_network_that_was_evaluated(
    dora: bool, recompute: bool
) -> None:
    """Each micro-batch, and each slice of one, has masks of its own; recomputed layers have the same ones again."""

    def made(source: DropoutKey) -> nn.Module:
        return with_adapters(llama_model(), dropout=0.3, source=source, dora=dora)

    tokens, supervised = batch(10, 24, seed=3)
    keys = [slice_key(step_key(7, 0), 0), slice_key(step_key(7, 0), 1), step_key(7, 1), step_key(7, 2)]
    source = DropoutKey()
    model = made(source)
    if recompute:
        checkpoint_layers(model.layers)
    parts = [(Targets.of(tokens[part], supervised[part]), key) for part, key in zip(PARTS, keys, strict=True)]
    got = of_window(model, source, parts)
    plain = DropoutKey()
    exact = plain_autodiff(
        made(plain), plain, [(tokens[part], supervised[part], key) for part, key in zip(PARTS, keys, strict=True)]
    )
    assert got[1] == pytest.approx(exact[1], rel=1e-5)
    assert_close(got[0], exact[0])


def spied(model: nn.Module, found: list[tuple[int, ...]]) -> None:
    """Note the shapes that the head's plain projection is given."""
    inner = model.lm_head
    kind = type(inner)

    class Spy(kind):  # type: ignore[misc, valid-type]
        def __call__(self, x: mx.array) -> mx.array:
            found.append(tuple(x.shape))
            return super().__call__(x)

    inner.__class__ = Spy


def test_only_rows_with_a_target_are_projected() -> None:
    """Under `mask_prompt` most rows of logits would be thrown away."""
    shapes: list[tuple[int, ...]] = []
    model = with_adapters(llama_model(tied=False))
    spied(model, shapes)
    tokens, supervised = batch(4, 65, seed=1)
    supervised[:, 6:] = False
    step = training_step(model)
    shapes.clear()  # the search for the head projects two rows, lazily
    done = step.micro_batch(Targets.of(tokens, supervised), step_key(0, 0))
    assert 0 < done.count <= 20
    assert {int(np.prod(shape[:-1])) for shape in shapes} == {32}


@pytest.mark.parametrize(
    ("make", "options", "layer"),
    [
        (llama_model, {}, nn.Embedding),
        (lambda: llama_model(tied=False), {}, nn.Linear),
        (lambda: llama_model(tied=False), {"keys": ["lm_head"]}, LoRALinear),
        (lambda: llama_model(tied=False), {"keys": ["lm_head"], "dora": True}, DoRALinear),
        (llama_model, {"keys": ["model.embed_tokens"]}, LoRAEmbedding),
        (llama_model, {"keys": ["model.embed_tokens"], "dora": True}, DoRAEmbedding),
        (gemma2_model, {}, nn.Embedding),
        (unfamiliar_model, {}, None),
    ],
)
def test_the_output_layer_is_found_and_nothing_else_is_touched(
    make: Callable[[], nn.Module], options: dict[str, Any], layer: type | None
) -> None:
    """A layer taken for the head by mistake would project the wrong rows; one that is missed costs memory."""
    plain, model = with_adapters(make(), **options), with_adapters(make(), **options)
    head = Head(model)
    kinds = {name: type(module) for name, module in plain.named_modules()}
    changed = {name: type(m) for name, m in model.named_modules() if type(m) is not kinds[name]}
    assert {kind.__base__ for kind in changed.values()} == ({layer} if layer else set())
    assert [name for name, _ in tree_flatten(model.parameters())] == [n for n, _ in tree_flatten(plain.parameters())]
    tokens = mx.array([[1, 5, 9, 20]])
    assert mx.array_equal(model(tokens), plain(tokens))  # to everybody else it is the same model
    del head


def test_a_model_may_have_several_steps_one_after_the_other() -> None:
    """Tests and tools make a second step over a model that has one."""
    model = with_adapters(llama_model())
    tokens, supervised = batch(3, 16)
    first = training_step(model).micro_batch(Targets.of(tokens, supervised), step_key(0, 0))
    second = training_step(model).micro_batch(Targets.of(tokens, supervised), step_key(0, 0))
    assert first == second


def test_evaluation_gives_the_loss_of_training_without_dropout() -> None:
    """Validation takes the other of the two ways to project chunks."""
    model = with_adapters(llama_model())
    step = training_step(model)
    targets = Targets.of(*batch(3, 16))
    trained = step.micro_batch(targets, step_key(0, 0)).loss
    model.eval()
    assert step.loss(targets) == pytest.approx(trained, rel=1e-6)


def test_without_a_target_the_loss_is_zero() -> None:
    """An all-masked row contributes nothing; a mean over nothing would be NaN."""
    step = training_step(with_adapters(llama_model()))
    tokens, supervised = batch(2, 9)
    done = step.micro_batch(Targets.of(tokens, np.zeros_like(supervised)), step_key(0, 0))
    assert (done.loss, done.count, done.gradient_norm, done.good) == (0.0, 0, 0.0, True)
    assert all(not gradient.any() for gradient in window_gradients(step).values())


def test_a_quantized_output_layer_is_dequantized_once_for_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a vocabulary of 128,256 a chunk is 130 rows, and the matrix a gigabyte each time."""
    unpacked: list[int] = []

    def counted(*arguments: Any) -> mx.array:
        unpacked.append(1)
        return unpack(*arguments)

    monkeypatch.setattr(frozen, "unpack", counted)
    monkeypatch.setattr(loss, "LOGITS_BYTES", 4 * 4 * VOCABULARY)  # chunks of four rows
    found = []
    for ways in (Ways(), Ways("dequantized", "dequantized"), Ways("dequantized", "quantized")):
        model = llama_model(hidden=64, tied=False)
        nn.quantize(model, group_size=32, bits=4)
        frozen.use(model.lm_head, ways)
        step = training_step(with_adapters(model))
        step.model.train()
        unpacked.clear()
        done = step.micro_batch(narrow(*batch(4, 12)), step_key(0, 0))
        found.append((done.loss, window_gradients(step), len(unpacked)))
    assert found[0][2] == 0
    assert found[1][2] == 1
    assert found[2][2] > 3
    for other in found[1:]:
        assert other[0] == pytest.approx(found[0][0], rel=1e-5)
        assert_close(other[1], found[0][1], 1e-4)
