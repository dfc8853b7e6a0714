"""LoRA layers (Hu et al. 2021) that add their product while it is computed, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import mlx.core as mx
from mlx import nn
from mlx_lm.tuner.lora import LoRALinear

from qlora_engine.training.adapter_products import UPRIGHT, Adapter, Matrices
from qlora_engine.training.dropout import KeyedDropout
from qlora_engine.training.frozen import FrozenLinear, Ways, backward, forward, use

Watch = Callable[["LowRank", mx.array], object]


class Together(Protocol):
    """Layers that are computed as one, or a layer whose adapter is computed otherwise."""

    members: tuple[LowRank, ...]

    def output(self, member: LowRank, x: mx.array) -> mx.array:
        """What one of them maps x to."""

    def adapter(self, kind: mx.Dtype) -> Adapter:
        """That of all, in that type."""


class LowRank(LoRALinear):
    """mlx_lm's layer, computed with fewer passes over its inputs and outputs.

    The product with B is added to the frozen layer's by the matrix kernel itself, and so are the two parts of the
    input's gradient. Nothing of the size of the output is scaled: the scale goes into B, or into (…, rank).

    Attributes:
        folded: `lora_b` holds the scale already.
        siblings: those that it is computed with, if it is.
    """

    folded = False
    siblings: Together | None = None
    _watch: ClassVar[Watch | None] = None

    def __call__(self, x: mx.array) -> mx.array:
        """Map (..., D) to (..., E)."""
        if LowRank._watch is not None:
            LowRank._watch(self, x)
        if self.siblings is not None:
            return self.siblings.output(self, x)
        if self.drops:
            return _dropped(self.linear, x, self.dropout(x), *self.upright(x.dtype))
        return adapted(self.linear, x, self.adapter(x.dtype))

    @staticmethod
    @contextmanager
    def watched(watch: Watch) -> Iterator[None]:
        """Tell `watch` of every call of every such layer, and of its input."""
        LowRank._watch = watch
        try:
            yield
        finally:
            LowRank._watch = None

    @property
    def has_dropout(self) -> bool:
        """Whether in training its input is not the frozen layer's."""
        return bool(isinstance(self.dropout, KeyedDropout) or self.dropout._p_1 < 1)

    @property
    def drops(self) -> bool:
        """Whether its input is not the frozen layer's."""
        return self.has_dropout and self.training

    @property
    def alone(self) -> bool:
        """Whether no other layer is computed with it."""
        return self.siblings is None or len(self.siblings.members) == 1

    def upright(self, kind: mx.Dtype) -> Matrices:
        """A, (D, rank), and B with the scale, (rank, E)."""
        return self.lora_a.astype(kind), (self.lora_b if self.folded else self.scale * self.lora_b).astype(kind)

    def adapter(self, kind: mx.Dtype) -> Adapter:
        """Its own in that type, if it is alone, or that of all with which it is computed."""
        return Adapter(UPRIGHT, *self.upright(kind)) if self.siblings is None else self.siblings.adapter(kind)


def replace_lora(model: nn.Module) -> int:
    """Make every LoRA layer over a linear one a `LowRank`; how many there are.

    The objects get a subclass of their class; names and parameters stay as they are.
    """
    found = [m for _, m in model.named_modules() if type(m) is LoRALinear and _known(m.linear)]
    for module in found:
        module.__class__ = LowRank
        inner: Any = module.linear  # mlx_lm says that it is a `Linear`
        if type(inner) is nn.QuantizedLinear:
            use(inner, Ways())
    return len(found)


def _known(layer: nn.Module) -> bool:
    return type(layer) in (nn.Linear, nn.QuantizedLinear, FrozenLinear)


def adapted(layer: nn.Linear | FrozenLinear, x: mx.array, adapter: Adapter) -> mx.array:
    """layer(x) + x @ A @ B.

    Args:
        x: (..., D).
    """
    how = adapter.how

    @mx.custom_function
    def product(x: mx.array, a: mx.array, b: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        return with_adapter(layer, x, Adapter(how, a, b))

    @product.vjp
    def gradients(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        (x, a, _), (_, inner, ready) = primals, outputs
        return gradients_of(layer, x, Adapter(how, a, ready), inner, cotangents[0])

    results: Any = product(x, adapter.a, adapter.b)
    y: mx.array = results[0]
    return y


def with_adapter(layer: nn.Linear | FrozenLinear, x: mx.array, adapter: Adapter) -> tuple[mx.array, mx.array, mx.array]:
    """layer(x) + x @ A @ B, and what the gradient takes of it: x @ A as (N, rank), and B as the products take it."""
    how, flat = adapter.how, _flat(x)
    ready = how.ready(adapter.b)
    inner = how.inner(flat, adapter.a)
    y = how.add(forward(layer, flat), inner, ready)
    return y.reshape(*x.shape[:-1], y.shape[-1]), inner, ready


def gradients_of(
    layer: nn.Linear | FrozenLinear, x: mx.array, adapter: Adapter, inner: mx.array, cotangent: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """The gradients of layer(x) + x @ A @ B for x, A and B.

    That of x waits for the others. The gradients of all layers are joined at the end, and until then nothing else
    would ask for them: the inputs of every layer, made again or not, would be there until the last.

    Args:
        adapter: its B ready for the products.
        inner: x @ A, (N, rank).
    """
    (how, a, ready), flat, cotangent = adapter, _flat(x), _flat(cotangent)
    back = how.back(cotangent, ready)
    of_a, of_b = how.gradients(flat, back, inner, cotangent)
    (of_x,) = mx.depends([how.add_back(backward(layer, cotangent), back, a)], [of_a, of_b])
    return of_x.reshape(x.shape), of_a, of_b


def _dropped(layer: nn.Linear | FrozenLinear, x: mx.array, dropped: mx.array, a: mx.array, b: mx.array) -> mx.array:
    """layer(x) + dropped @ a @ b."""

    @mx.custom_function
    def product(x: mx.array, dropped: mx.array, a: mx.array, b: mx.array) -> tuple[mx.array, mx.array]:
        inner = _flat(dropped) @ a
        y = mx.addmm(forward(layer, _flat(x)), inner, b)
        return y.reshape(*x.shape[:-1], y.shape[-1]), inner

    @product.vjp
    def gradients(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        (x, dropped, a, b), cotangent, inner = primals, _flat(cotangents[0]), outputs[1]
        back = cotangent @ b.T
        of_a, of_b = _flat(dropped).T @ back, inner.T @ cotangent
        of_x, of_dropped = mx.depends([backward(layer, cotangent), back @ a.T], [of_a, of_b])
        return of_x.reshape(x.shape), of_dropped.reshape(x.shape), of_a, of_b

    result: Any = product(x, dropped, a, b)
    y: mx.array = result[0]
    return y


def _flat(array: mx.array) -> mx.array:
    return array.reshape(-1, array.shape[-1])
