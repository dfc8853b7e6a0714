"""Feed-forward parts gated by SiLU, computed on the CPU without MLX's slow sigmoid (SwiGLU; Shazeer 2020)."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn

from qlora_engine.training.device import SLOW_EXP, exp, on_cpu

PARTS = ("gate_proj", "up_proj", "down_proj")
TOLERANCE = 1e-4  # of the largest output; other activation functions are further off


def silu_times(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) × up, in float32.

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


def replace_gated(model: nn.Module) -> int:
    """Have every feed-forward part that is gated by SiLU use `silu_times`; how many there are.

    Only where it is faster, which is on x86 CPUs, and only a part whose result stays the same. The objects get a
    subclass of their class; names and parameters stay as they are.
    """
    if not (on_cpu() and SLOW_EXP):
        return 0
    found = [module for _, module in model.named_modules() if all(part in module for part in PARTS)]
    same = [_same(module) for module in found]
    mx.eval(same)
    chosen = [module for module, agrees in zip(found, same, strict=True) if agrees]
    for module in chosen:
        if isinstance(module, _Gated):
            continue
        module.__class__ = type(f"Gated{type(module).__name__}", (_Gated, type(module)), {})
    return len(chosen)


class _Gated(nn.Module):
    """Put before a feed-forward part's class."""

    def __call__(self, x: mx.array) -> mx.array:
        return _gated(self, x)


def _gated(module: nn.Module, x: mx.array) -> mx.array:
    result: mx.array = module.down_proj(silu_times(module.gate_proj(x), module.up_proj(x)))
    return result


def _same(module: nn.Module) -> mx.array:
    """Whether a part computes what the names of its layers suggest, bool ()."""
    inner = [layer for _, layer in module.gate_proj.named_modules() if type(layer) is nn.Linear]
    if len(inner) != 1 or inner[0].weight.dtype != mx.float32:
        return mx.array(False)
    x = mx.random.normal((4, inner[0].weight.shape[1]), key=mx.random.key(0))
    theirs = module(x)
    return mx.abs(_gated(module, x) - theirs).max() <= TOLERANCE * mx.abs(theirs).max()
