"""Our CUDA kernels: their sources run on the processor give what MLX gives, and models that use them learn the same."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.models import rope_utils

from qlora_engine.training import (
    adapter_kernels,
    adapter_pairs,
    cuda,
    gated,
    gated_kernels,
    grouping,
    join_kernel,
    norms,
    own_kernels,
    rotary,
    siblings,
    unpack,
)
from qlora_engine.training.adapter_products import ByKernels
from qlora_engine.training.lowrank import replace_lora
from qlora_engine.training.recompute import checkpoint_layers
from qlora_engine.training.siblings import bring_together, groups_of
from qlora_engine.training.targets import Targets
from support.cuda_on_cpu import run
from support.kernel_stand_ins import stand_in
from support.small import assert_close, batch, llama_model, masters, training_step, window_gradients, with_adapters

DRAW = np.random.default_rng(0)
BLOCK = 32


def drawn(*shape: int) -> np.ndarray:
    return DRAW.normal(size=shape).astype(np.float16)


def near(found: np.ndarray, expected: mx.array) -> None:
    """Equal but for the rounding of float16."""
    np.testing.assert_allclose(found.astype(np.float32), np.array(expected.astype(mx.float32)), atol=4e-3, rtol=4e-3)


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("layout", ["alone", "beside others", "turned about", "odd"])
def test_turning(back: bool, layout: str, tmp_path: Path) -> None:
    """Of heads that lie side by side, as a projection leaves them, and of others; a last block has some to spare."""
    many, heads, length, width = 2, 3, 5, 32
    x = {
        "alone": lambda: drawn(many, heads, length, width),
        "beside others": lambda: drawn(many, length, heads + 1, width)[:, :, :heads].transpose(0, 2, 1, 3),
        "turned about": lambda: drawn(many, heads, width, length).transpose(0, 1, 3, 2),
        "odd": lambda: drawn(many, heads, length, width + 1)[..., 1:],
    }[layout]()
    rope = mx.fast.rope
    settings: dict[str, Any] = {"traditional": False, "base": 100.0, "scale": 1.0, "offset": 0}
    unit = mx.concatenate([mx.ones((1, 1, length, width // 2)), mx.zeros((1, 1, length, width // 2))], axis=-1)
    angles = np.array(rope(unit, width, **settings)[0, 0])
    angles[:, width // 2 :] *= -1 if back else 1
    (found,) = run(
        rotary.TURN, [x, angles], threads=many * heads * length * width // 16, block=BLOCK,
        shapes=[(many, length, heads, width)], constants={"WIDTH": width}, folder=tmp_path,
    )  # fmt: skip
    forward = mx.array(np.ascontiguousarray(x))
    expected = rope(forward, width, **settings)
    if back:
        _, (expected,) = mx.vjp(lambda x: rope(x, width, **settings), [forward], [forward])
    near(found.transpose(0, 2, 1, 3), expected)


@pytest.mark.parametrize(("width", "block"), [(512, 64), (768, 32), (256, 32)])
def test_normalization_backward(width: int, block: int, tmp_path: Path) -> None:
    """With one row a block, in one piece or several a thread."""
    x, weight, cotangent, eps = drawn(3, width), drawn(width), drawn(3, width), 1e-2
    (bits,) = struct.unpack("i", struct.pack("f", eps))
    (found,) = run(
        norms.BACK, [x, weight, cotangent], threads=3 * block, block=block, shapes=[x.shape],
        constants={"WIDTH": width, "BLOCK": block, "EPS": bits}, folder=tmp_path,
    )  # fmt: skip
    _, (expected,) = mx.vjp(lambda x: mx.fast.rms_norm(x, mx.array(weight), eps), [mx.array(x)], [mx.array(cotangent)])
    near(found, expected)


def test_gated_product_and_gradient(tmp_path: Path) -> None:
    """Also where the gate is so far off that its exponential is infinite."""
    both, cotangent = drawn(5, 48), drawn(5, 24)
    both[0, :4] = [-200, 200, -11, 0]
    settings: dict[str, Any] = {"threads": 5 * 3, "block": BLOCK, "constants": {"WIDTH": 24}, "folder": tmp_path}
    (product,) = run(gated_kernels.FORWARD, [both], shapes=[(5, 24)], **settings)
    gradient, again = run(gated_kernels.BACKWARD, [both, cotangent], shapes=[(5, 48), (5, 24)], **settings)

    def plain(both: mx.array) -> mx.array:
        gate, up = mx.split(both.astype(mx.float32), 2, axis=-1)
        return gated.silu_times(gate, up).astype(both.dtype)

    (expected,), (of_both,) = mx.vjp(plain, [mx.array(both)], [mx.array(cotangent)])
    near(product, expected)
    near(again, expected)
    near(gradient, of_both)


@pytest.mark.parametrize("group", [32, 64])
def test_dequantization(group: int, tmp_path: Path) -> None:
    """Eight numbers a word, with the scale and bias of their group."""
    parts = mx.quantize(mx.array(drawn(4, 256)), group, unpack.BITS)
    packed, scales, biases = (np.array(part) for part in parts)
    (found,) = run(
        unpack.UNPACK, [packed, scales, biases], threads=packed.size, block=BLOCK,
        shapes=[(4, 256)], constants={"WORDS": group // 8}, folder=tmp_path,
    )  # fmt: skip
    near(found, mx.dequantize(*parts, group, unpack.BITS))


def test_gradients_joined(tmp_path: Path) -> None:
    """Of as many sizes as there are, in their order; a last block has some to spare."""
    arrays = [drawn(size) for size in (64, 192, 64, 128)]
    starts = np.cumsum([0, *map(len, arrays)]).astype(np.uint32)
    (found,) = run(
        join_kernel.kernel_for(4), [*arrays, starts], threads=int(starts[-1]) // 8, block=BLOCK,
        shapes=[(int(starts[-1]),)], constants={"COUNT": 4}, folder=tmp_path, kind=np.float32,
    )  # fmt: skip
    np.testing.assert_array_equal(found, np.concatenate(arrays).astype(np.float32))
    assert join_kernel.can_join([64, 128])
    assert not join_kernel.can_join([64, 100])
    assert not join_kernel.can_join([64] * 1000)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels as they are used on CUDA, for numbers of 32 bits."""
    monkeypatch.setattr(cuda.Kernel, "__call__", stand_in)
    monkeypatch.setattr(gated, "on_cpu", lambda: False)
    monkeypatch.setattr(adapter_pairs, "has_tensor_cores", lambda: True)
    for module in (rotary, norms, own_kernels, siblings, grouping):
        monkeypatch.setattr(module, "KINDS", (mx.float32,))


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    "names", [[], ["rotary"], ["norms"], ["gated"], ["adapters"], ["gradients"], list(own_kernels.PAIRS)]
)
def test_a_model_that_uses_them_learns_the_same(names: list[str], together: bool, recomputed: bool) -> None:
    """Each by itself and all of them: loss and every gradient."""
    found = []
    for chosen in ([], names):
        model = with_adapters(llama_model(hidden=256), rank=8)
        replace_lora(model)
        assert gated.replace_gated(model) == 2
        if together:
            assert len(bring_together(model)) == 4
        own_kernels.use(model, chosen, 64)
        if recomputed:
            checkpoint_layers(model.layers)
        model.train()
        step = training_step(model, joining="gradients" in chosen)
        loss = step.micro_batch(Targets.of(*batch(4, 12)), mx.random.key(0)).loss
        gradients = window_gradients(step)
        step.update()
        found.append((loss, gradients, masters(step)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    assert_close(found[1][1], found[0][1])
    assert_close(found[1][2], found[0][2], 2e-3)


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("optimizer", ["muon", "adafactor"])
def test_an_optimizer_that_looks_at_whole_matrices_does_too(optimizer: str) -> None:
    """Each matrix lies by itself then, upright; a checkpoint has the same arrays either way."""
    found = []
    for chosen in ([], ["adapters"]):
        model = together(with_adapters(llama_model(hidden=256), rank=8))
        own_kernels.use(model, chosen, 64)
        step = training_step(model, optimizer=optimizer)
        step.micro_batch(Targets.of(*batch(4, 12)), mx.random.key(0))
        gradients = window_gradients(step)
        step.update()
        found.append((gradients, masters(step), {name: array.shape for name, array in step.state().items()}))
    assert_close(found[1][0], found[0][0])
    assert_close(found[1][1], found[0][1], 2e-3)
    assert found[1][2] == found[0][2]


@pytest.mark.usefixtures("on_a_gpu")
def test_a_layer_that_two_parts_share_is_trained() -> None:
    """Under the name whose matrices are put into the model last."""
    model = with_adapters(llama_model(hidden=256), rank=8)
    model.layers[1].self_attn.o_proj = shared = model.layers[0].self_attn.o_proj
    replace_lora(model)
    own_kernels.use(model, ["adapters"], 64)
    step = training_step(model)
    before = np.array(shared.lora_b)
    step.micro_batch(Targets.of(*batch(4, 12)), mx.random.key(0))
    step.update()
    step.sync_model()
    assert np.abs(np.array(shared.lora_b) - before).min() > 0


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize(("kind", "weight"), [(mx.float32, mx.float16), (mx.float16, mx.float32)])
def test_numbers_of_other_types_are_left_to_mlx(
    placed: bool, kind: mx.Dtype, weight: mx.Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a layer is given them, or gives them: in the middle of a step a kernel could no longer be refused."""
    monkeypatch.setattr(siblings, "KINDS", (mx.float16,))
    monkeypatch.setattr(cuda.Kernel, "__call__", None)
    model = with_adapters(llama_model(hidden=256), rank=8)
    replace_lora(model)
    layer = model.layers[0].self_attn.o_proj
    layer.linear.weight = layer.linear.weight.astype(weight)
    x = mx.random.normal((2, 3, 256)).astype(kind)
    expected = layer(x)
    own_kernels.use(model, ["adapters"], 64)
    group = layer.siblings
    if placed:
        group.place(*group.how.laid([layer.upright(mx.float16)]))
    results, gradients = mx.vjp(layer, [x], [mx.ones_like(expected)])
    assert (results[0].dtype, gradients[0].dtype) == (mx.float32, mx.float32)
    assert mx.allclose(results[0], expected, rtol=2e-3, atol=2e-3)


@pytest.mark.usefixtures("on_a_gpu")
def test_every_part_that_can_uses_them() -> None:
    """The final normalization too; and only once, however often it is asked for."""
    model = with_adapters(llama_model(hidden=256), rank=8)
    replace_lora(model)
    gated.replace_gated(model)
    bring_together(model)
    for _ in range(2):
        own_kernels.use(model, list(own_kernels.PAIRS), 64)
    parts = [module for _, module in model.named_modules()]
    assert sum(isinstance(part, rotary.Turned) for part in parts) == 2
    assert sum(isinstance(part, norms.Normalized) for part in parts) == 5
    assert sum(isinstance(part, gated.Gated) and part.kernels for part in parts) == 2
    assert all(isinstance(group.how, ByKernels) for group in groups_of(model))
    assert len(groups_of(model)) == 8
    first, second = (layer.self_attn.rope for layer in model.layers)
    assert first.angles is second.angles
    narrow = with_adapters(llama_model(hidden=32))  # heads of 8, and rows of no whole warp
    own_kernels.use(narrow, ["rotary", "norms"], 64)
    assert not any(isinstance(part, rotary.Turned | norms.Normalized) for _, part in narrow.named_modules())


@pytest.mark.usefixtures("on_a_gpu")
def test_what_a_row_is_too_long_for_is_turned_as_before() -> None:
    """So is what counts from another position, as an answer does that is written token by token."""
    model = llama_model(hidden=256)
    x = mx.random.normal((1, 2, 9, 64))
    plain = model.layers[0].self_attn.rope
    long, late = plain(x), plain(x[:, :, :3], offset=7)
    rotary.replace_rotary(model, 8)
    assert mx.array_equal(plain(x), long)
    assert mx.array_equal(plain(x[:, :, :3], offset=7), late)


def unexpected(name: str, why: str) -> None:
    raise AssertionError(f"{name}: {why}")


@pytest.mark.usefixtures("on_a_gpu")
def test_what_cannot_be_compiled_is_said_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that refuses a kernel must not end a run; a want of memory must, for what is done about it."""
    model = together(with_adapters(llama_model(hidden=256), rank=8))
    words = "nvrtcCompileProgram failed: NVRTC_ERROR_COMPILATION\n…"

    def refused(kernel: cuda.Kernel, inputs: list[mx.array], **settings: Any) -> list[mx.array]:
        if kernel is norms.BACK:
            raise RuntimeError(words)
        return stand_in(kernel, inputs, **settings)

    monkeypatch.setattr(cuda.Kernel, "__call__", refused)
    said: list[tuple[str, str]] = []
    found = own_kernels.measure(model, 16, mx.float32, lambda *failed: said.append(failed))
    assert set(found) == set(own_kernels.PAIRS) - {"norms"}
    assert said == [("norms", "nvrtcCompileProgram failed: NVRTC_ERROR_COMPILATION")]
    words = "[malloc] Unable to allocate 10 bytes."
    with pytest.raises(RuntimeError, match="Unable to allocate"):
        own_kernels.agreeing(model, ["norms"], 16, mx.float32, unexpected)


@pytest.mark.usefixtures("on_a_gpu")
def test_only_what_gives_the_same_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that a driver compiles wrongly must not train anything."""
    model = together(with_adapters(llama_model(hidden=256), rank=8))
    every = list(own_kernels.PAIRS)
    assert set(own_kernels.measure(model, 16, mx.float32, unexpected)) == set(every)
    assert own_kernels.measure(model, 16, mx.float16, unexpected) == {}
    assert own_kernels.agreeing(model, every, 16, mx.float32, unexpected) == every
    assert own_kernels.agreeing(model, ["norms", "another"], 16, mx.float32, unexpected) == ["norms"]

    def wrong(kernel: cuda.Kernel, inputs: list[mx.array], **settings: Any) -> list[mx.array]:
        return [made * (0.9 if kernel is norms.BACK else 1) for made in stand_in(kernel, inputs, **settings)]

    monkeypatch.setattr(cuda.Kernel, "__call__", wrong)
    assert own_kernels.agreeing(model, every, 16, mx.float32, unexpected) == [name for name in every if name != "norms"]
    assert own_kernels.faster({"a": (2.0, 1.0), "b": (1.0, 0.99), "c": (1.0, 2.0)}) == ["a"]


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("wrong", ["another rank", "the other sibling's"])
def test_products_of_every_rank_and_sibling_are_compared(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of one width may differ in rank, and siblings must not be taken for each other."""
    model = with_adapters(llama_model(hidden=256), rank=8)
    other = model.layers[0].self_attn.o_proj
    other.lora_a, other.lora_b = mx.zeros((256, 32)), mx.zeros((32, 256))
    together(model)

    def off(kernel: cuda.Kernel, inputs: list[mx.array], **settings: Any) -> list[mx.array]:
        if kernel is adapter_kernels.ADD:
            y, inner, w, layout = inputs
            if wrong == "another rank" and layout.shape == (1, 32):
                inputs = [y, 2 * inner, w, layout]
            elif wrong == "the other sibling's" and layout.shape[0] == 2:
                inputs = [y, inner, mx.roll(w, w.size // 2), layout]
        return stand_in(kernel, inputs, **settings)

    assert own_kernels.agreeing(model, ["adapters"], 16, mx.float32, unexpected) == ["adapters"]
    monkeypatch.setattr(cuda.Kernel, "__call__", off)
    assert own_kernels.agreeing(model, ["adapters"], 16, mx.float32, unexpected) == []


@pytest.mark.usefixtures("on_a_gpu")
def test_measuring_the_widest_layers_takes_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others keep theirs."""
    model = together(with_adapters(llama_model(hidden=256), rank=8))
    monkeypatch.setattr(adapter_pairs, "MOST", 8000)  # 7 rows of gate and up, 512 wide each, and 15 of what is 512 wide
    pair = adapter_pairs.pair_of_products(model, 12, mx.float32)
    assert pair is not None
    assert pair.x.shape == pair.cotangent.shape == (7 * 1024,)
    shapes = {array.shape for array in pair.ours(pair.x, pair.cotangent)}
    assert {(7, 1024), (12, 512)} <= shapes
    assert pair.agree()


@pytest.mark.usefixtures("on_a_gpu")
def test_what_nothing_would_use_is_not_measured() -> None:
    """It would be compiled and reported for nothing."""
    dropped = together(with_adapters(llama_model(hidden=256), rank=8, dropout=0.5))
    assert set(own_kernels.measure(dropped, 16, mx.float32, unexpected)) == {"rotary", "norms"}
    partly = with_adapters(llama_model(hidden=256), rank=8)
    for layer in partly.layers:
        layer.self_attn.rope = nn.RoPE(32)  # of heads of 64
    assert set(own_kernels.measure(partly, 16, mx.float32, unexpected)) == {"norms"}


@pytest.mark.usefixtures("on_a_gpu")
def test_angles_that_depend_on_a_rows_length_stay_the_models() -> None:
    """With one table for all rows, shorter ones would be turned as if they were long."""
    model = llama_model(hidden=256)
    scaled = rope_utils.DynamicNTKScalingRoPE(64, 32, False, 10000.0, 2.0)  # up to 32 positions they do not
    for layer in model.layers:
        layer.self_attn.rope = scaled  # one object, as some models have
    assert rotary.replace_rotary(model, 64) == 0
    assert rotary.replace_rotary(model, 32) == 1


def together(model: nn.Module) -> nn.Module:
    """The model as a run on a GPU has it."""
    replace_lora(model)
    gated.replace_gated(model)
    bring_together(model)
    return model
