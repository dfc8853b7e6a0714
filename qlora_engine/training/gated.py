"""Feed-forward parts gated by SiLU, without what MLX's own graph of them costs (SwiGLU; Shazeer 2020).

On the CPU that is its slow sigmoid. On a GPU it is memory: of the arrays as wide as the part the gate and what it
gates are kept for the backward pass, where they were five.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
from mlx import nn

from qlora_engine.job.preflight.batch import CHUNK
from qlora_engine.training import gated_kernels
from qlora_engine.training.adapter_products import Adapter
from qlora_engine.training.chunks import in_chunks
from qlora_engine.training.cuda import EIGHT, Pair
from qlora_engine.training.device import SLOW_EXP, exp, on_cpu
from qlora_engine.training.frozen import FrozenLinear, backward
from qlora_engine.training.lowrank import LowRank, gradients_of, with_adapter
from qlora_engine.training.siblings import Siblings

PARTS = ("gate_proj", "up_proj", "down_proj")
# Of the largest output, where the gate is some units wide: other activation functions are further off.
TOLERANCE = {mx.float32: 1e-4, mx.bfloat16: 2e-2, mx.float16: 4e-3}
SPREAD = 2.0  # of the gate


def silu_times(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) × up, in float32, for the CPU.

    Args:
        gate, up: float32, of one shape.
    """

    # Keeps its inputs and the sigmoid for the backward pass, and none of the arrays between them and the result.
    @mx.custom_function
    def product(gate: mx.array, up: mx.array) -> tuple[mx.array, mx.array]:
        share = _sigmoid(gate)
        return gate * share * up, share

    @product.vjp
    def backward(
        primals: tuple[mx.array, mx.array], cotangents: tuple[mx.array, mx.array], outputs: tuple[mx.array, mx.array]
    ) -> tuple[mx.array, mx.array]:
        (gate, up), cotangent, share = primals, cotangents[0], outputs[1]
        silu = gate * share
        return cotangent * up * (share + silu * (1 - share)), cotangent * silu

    result: Any = product(gate, up)
    y: mx.array = result[0]
    return y


def _sigmoid(x: mx.array) -> mx.array:
    return 1 / (1 + exp(-x))


def fused_silu_times(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) × up in one kernel where MLX compiles, computed in float32; keeps its inputs alone.

    Args:
        gate, up: of one shape and type, which the result has too.
    """

    @mx.custom_function
    def product(gate: mx.array, up: mx.array) -> mx.array:
        return _silu_times(gate, up)

    @product.vjp
    def backward(
        primals: tuple[mx.array, mx.array], cotangent: mx.array, _output: mx.array
    ) -> tuple[mx.array, mx.array]:
        return _gradients(*primals, cotangent)

    result: Any = product(gate, up)
    y: mx.array = result
    return y


def gated_down(down: LowRank, gate: mx.array, up: mx.array) -> mx.array:
    """down(silu(gate) × up), whose product is made again in the backward pass rather than kept.

    Args:
        down: its input is not dropped out.
        gate, up: (..., D), of one type.
    """
    adapter = down.adapter(gate.dtype)
    layer: nn.Linear | FrozenLinear = down.linear

    @mx.custom_function
    def product(gate: mx.array, up: mx.array, a: mx.array, b: mx.array) -> tuple[mx.array, ...]:
        return with_adapter(layer, _silu_times(gate, up), Adapter(adapter.how, a, b))

    @product.vjp
    def backward(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        (gate, up, a, _), cotangent, (_, inner, ready) = primals, cotangents[0], outputs
        # Tied to the cotangent, or it would be the forward pass's product, and be kept.
        x = _silu_times(*mx.depends([gate, up], [cotangent]))
        of_x, of_a, of_b = gradients_of(layer, x, Adapter(adapter.how, a, ready), inner, cotangent)
        return *_gradients(gate, up, of_x), of_a, of_b

    result: Any = product(gate, up, adapter.a, adapter.b)
    y: mx.array = result[0]
    return y


def _silu_times(gate: mx.array, up: mx.array) -> mx.array:
    wide = gate.astype(mx.float32)
    return (wide * mx.sigmoid(wide) * up.astype(mx.float32)).astype(gate.dtype)


def gated_down_of_both(down: LowRank, both: mx.array) -> mx.array:
    """The same of gate and up side by side, whose gradient is one array too.

    Args:
        down: its input is not dropped out.
        both: (..., 2 D), the gate first.
    """
    adapter = down.adapter(both.dtype)
    layer: nn.Linear | FrozenLinear = down.linear

    @mx.custom_function
    def product(both: mx.array, a: mx.array, b: mx.array) -> tuple[mx.array, ...]:
        return with_adapter(layer, _silu_times(*mx.split(both, 2, axis=-1)), Adapter(adapter.how, a, b))

    @product.vjp
    def backward(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        (both, a, _), cotangent, (_, inner, ready) = primals, cotangents[0], outputs
        x = _silu_times(*mx.split(mx.depends([both], [cotangent])[0], 2, axis=-1))
        of_x, of_a, of_b = gradients_of(layer, x, Adapter(adapter.how, a, ready), inner, cotangent)
        return _gradient_of_both(both, of_x), of_a, of_b

    result: Any = product(both, adapter.a, adapter.b)
    y: mx.array = result[0]
    return y


def _gradient_of_both(both: mx.array, cotangent: mx.array) -> mx.array:
    """That of silu(gate) × up, (..., 2 D), in one kernel: each number is computed as in either half, and one is taken.

    A GPU has time for that while it waits for memory, and the results of two kernels would have to be copied together.
    """
    (both,) = mx.depends([both], [cotangent])
    halves = mx.split(both.reshape(*both.shape[:-1], 2, -1), 2, axis=-2)
    gate, up, wide = (array.astype(mx.float32) for array in (*halves, mx.expand_dims(cotangent, -2)))
    share = mx.sigmoid(gate)
    silu = gate * share
    slope = mx.where(mx.array([[True], [False]]), up * (share + silu * (1 - share)), silu)
    gradient: mx.array = (wide * slope).astype(both.dtype).reshape(both.shape)
    return gradient


def gated_down_by_kernels(down: LowRank, both: mx.array) -> mx.array:
    """The same as `gated_down_of_both`, where one kernel makes the gradient and the product again."""
    adapter = down.adapter(both.dtype)
    layer: nn.Linear | FrozenLinear = down.linear

    @mx.custom_function
    def product(both: mx.array, a: mx.array, b: mx.array) -> tuple[mx.array, ...]:
        return with_adapter(layer, gated_kernels.product_of_both(both), Adapter(adapter.how, a, b))

    @product.vjp
    def gradients(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        (both, a, _), cotangent, (_, inner, ready) = primals, cotangents[0], outputs
        how = adapter.how
        back = how.back(cotangent, ready)
        of_x = how.add_back(backward(layer, cotangent), back, a)
        of_both, x = gated_kernels.gradient_of_both(both, of_x)
        of_a, of_b = how.gradients(x, back, inner, cotangent)
        return mx.depends([of_both], [of_a, of_b])[0], of_a, of_b

    results: Any = product(both.reshape(-1, both.shape[-1]), adapter.a, adapter.b)
    y: mx.array = results[0]
    return y.reshape(*both.shape[:-1], y.shape[-1])


def _gradients(gate: mx.array, up: mx.array, cotangent: mx.array) -> tuple[mx.array, mx.array]:
    """One kernel each: tied to different arrays they share nothing, and a shared sigmoid would be written and read."""
    again, up = mx.depends([gate, up], [cotangent])
    of_gate = _of_gate(again, up, cotangent)
    gate, cotangent = mx.depends([gate, cotangent], [of_gate])
    return of_gate, _silu_times(gate, cotangent)


def _of_gate(gate: mx.array, up: mx.array, cotangent: mx.array) -> mx.array:
    wide = gate.astype(mx.float32)
    share = mx.sigmoid(wide)
    slope = share + wide * share * (1 - share)
    return (cotangent.astype(mx.float32) * up.astype(mx.float32) * slope).astype(gate.dtype)


def replace_gated(model: nn.Module) -> int:
    """Have every feed-forward part that is gated by SiLU use the functions above; how many there are.

    Only where they are better, which on the CPU is x86, and only a part whose result stays the same. The objects get
    a subclass of their class; names and parameters stay as they are.
    """
    if on_cpu() and not SLOW_EXP:
        return 0
    found = [module for _, module in model.named_modules() if all(part in module for part in PARTS)]
    same = [_same(module) for module in found]
    mx.eval(same)
    chosen = [module for module, agrees in zip(found, same, strict=True) if agrees]
    for module in chosen:
        if isinstance(module, Gated):
            continue
        module.__class__ = type(f"Gated{type(module).__name__}", (Gated, type(module)), {})
    return len(chosen)


def use_kernels(model: nn.Module) -> int:
    """Have the feed-forward parts that are gated by SiLU use kernels of our own where they can; how many do."""
    found = _for_kernels(model)
    for module in found:
        module.kernels = True
    return len(found)


def pair(model: nn.Module, rows: int, kind: mx.Dtype) -> Pair | None:
    """The kernels and what MLX compiles, to be compared over that many positions; None where nothing would use them."""
    found = _for_kernels(model)
    if not found:
        return None
    down = found[0].down_proj
    width = down.lora_a.shape[0]
    both, cotangent = (mx.random.normal((rows, n), key=mx.random.key(n)).astype(kind) for n in (2 * width, width))

    def theirs(both: mx.array, cotangent: mx.array) -> list[mx.array]:
        again = mx.depends([both], [cotangent])[0]
        products = [_silu_times(*mx.split(array, 2, axis=-1)) for array in (again, both)]
        return [_gradient_of_both(both, cotangent), *products]

    def ours(both: mx.array, cotangent: mx.array) -> list[mx.array]:
        return [*gated_kernels.gradient_of_both(both, cotangent), gated_kernels.product_of_both(both)]

    return Pair(theirs, ours, both, cotangent)


def _for_kernels(model: nn.Module) -> list[Gated]:
    """Parts whose gate and what it gates are one array, of a width that the kernels can take."""
    found = [module for _, module in model.named_modules() if isinstance(module, Gated) and _siblings(module)]
    adapted = [module for module in found if isinstance(module.down_proj, LowRank) and not module.down_proj.has_dropout]
    return [module for module in adapted if module.down_proj.lora_a.shape[0] % EIGHT == 0]


class Gated(nn.Module):
    """Put before a feed-forward part's class.

    Attributes:
        recomputed: its layer keeps its input alone, to need little memory: then so does this part, for a chunk of the
            positions at a time.
        kernels: it uses those of `gated_kernels` where its gate and what it gates are computed as one.
    """

    recomputed = False
    kernels = False

    def __call__(self, x: mx.array) -> mx.array:
        """Map (..., D) to (..., D)."""
        many = self.recomputed and math.prod(x.shape[:-1]) > 2 * CHUNK
        drops = any(isinstance(self[part], LowRank) and self[part].drops for part in PARTS)
        return in_chunks(_gated, self, x, CHUNK) if many and not drops else _gated(self, x)


def _gated(module: nn.Module, x: mx.array) -> mx.array:
    down, both = module.down_proj, _siblings(module)
    again = isinstance(down, LowRank) and down.alone and not down.drops and not on_cpu()
    if again and both is not None:
        return (gated_down_by_kernels if module.kernels else gated_down_of_both)(down, both.joint(x))
    gate, up = module.gate_proj(x), module.up_proj(x)
    if on_cpu():
        result: mx.array = down(silu_times(gate, up))
    elif again:
        result = gated_down(down, gate, up)
    else:
        result = down(fused_silu_times(gate, up))
    return result


def _siblings(module: nn.Module) -> Siblings | None:
    """The gate and what it gates, where they are computed as one."""
    both = getattr(module.gate_proj, "siblings", None)
    if not isinstance(both, Siblings) or list(map(id, both.members)) != [id(module.gate_proj), id(module.up_proj)]:
        return None
    return both


def _same(module: nn.Module) -> mx.array:
    """Whether a part computes what the names of its layers suggest, bool ()."""
    inner = [
        layer for _, layer in module.gate_proj.named_modules() if isinstance(layer, nn.Linear | nn.QuantizedLinear)
    ]
    if len(inner) != 1:
        return mx.array(False)
    layer = inner[0]
    kind = layer.scales.dtype if isinstance(layer, nn.QuantizedLinear) else layer.weight.dtype
    if kind not in TOLERANCE or (on_cpu() and kind != mx.float32):
        return mx.array(False)
    width = layer.weight.shape[1] * (32 // layer.bits if isinstance(layer, nn.QuantizedLinear) else 1)
    x = mx.random.normal((4, width), key=mx.random.key(0))
    x = (x * (SPREAD / mx.std(module.gate_proj(x.astype(kind)).astype(mx.float32)))).astype(kind)
    theirs = module(x).astype(mx.float32)
    return mx.abs(_gated(module, x).astype(mx.float32) - theirs).max() <= TOLERANCE[kind] * mx.abs(theirs).max()
