"""Products with frozen quantized matrices: MLX's own, or of a dequantized matrix that exists while it is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
from mlx import nn

from qlora_engine.training.unpack import unpack

Way = Literal["quantized", "dequantized"]


@dataclass(frozen=True)
class Ways:
    """How a matrix is multiplied in each direction.

    Attributes:
        forward: x to x @ W.T.
        backward: the cotangent to cotangent @ W.
    """

    forward: Way = "quantized"
    backward: Way = "quantized"


DEQUANTIZED = Ways("dequantized", "dequantized")


def use(layer: nn.QuantizedLinear, ways: Ways) -> None:
    """Have a quantized linear layer multiply in these ways.

    The object gets a subclass of its class; its names and parameters stay as they are.
    """
    if not isinstance(layer, FrozenLinear):
        layer.__class__ = FrozenLinear
    layer.ways = ways


class FrozenLinear(nn.QuantizedLinear):
    """A quantized linear layer whose matrix is not trained, and which multiplies in the ways that are fastest."""

    ways = Ways()

    def __call__(self, x: mx.array) -> mx.array:
        """Map (..., D) to (..., E)."""

        @mx.custom_function
        def product(x: mx.array) -> mx.array:
            return self.forward(x)

        @product.vjp
        def backward(_x: mx.array, cotangent: mx.array, _output: mx.array) -> mx.array:
            return self.backward(cotangent)

        result: Any = product(x)
        y: mx.array = result
        return y + self.bias if "bias" in self else y

    def forward(self, x: mx.array) -> mx.array:
        """x @ W.T, without the bias."""
        return self._multiplied(x) if self.ways.forward == "quantized" else x @ self.matrix(x).T

    def backward(self, cotangent: mx.array) -> mx.array:
        """Its vector-Jacobian product: cotangent @ W."""
        if self.ways.backward == "quantized":
            return self._multiplied(cotangent, transpose=False)
        return cotangent @ self.matrix(cotangent)

    def for_several(self, after: mx.array) -> Callable[[mx.array], mx.array]:
        """The layer for several products: a matrix that they dequantize is dequantized once for all of them.

        Args:
            after: what is there before the first of them.
        """
        if self.ways != DEQUANTIZED:
            return self
        matrix = self.matrix(after)

        def product(x: mx.array) -> mx.array:
            y = x @ matrix.T
            return y + self.bias if "bias" in self else y

        return product

    def part(self, start: int, stop: int) -> FrozenLinear:
        """The layer of some of its outputs, whose arrays are parts of these."""
        made = FrozenLinear(64, 32, bias="bias" in self)
        made.bits, made.group_size, made.mode, made.ways = self.bits, self.group_size, self.mode, self.ways
        made.update({name: array[start:stop] for name, array in self.items()})
        mx.eval(list(made.values()))
        made.freeze()
        return made

    def _multiplied(self, x: mx.array, *, transpose: bool = True) -> mx.array:
        return mx.quantized_matmul(
            x, self.weight, self.scales, self.get("biases"), transpose, self.group_size, self.bits, self.mode
        )

    def matrix(self, after: mx.array) -> mx.array:
        """W (E, D), in the type of `after` and no earlier than it.

        Equal expressions are computed once and kept. Tied to what each product waits for, the matrices of the
        forward pass, of a recomputation and of the backward pass are different expressions, and none is kept.
        """
        biases = self.get("biases")  # mxfp4 and nvfp4 have none
        parts: list[mx.array] = [self.weight, self.scales] + ([] if biases is None else [biases])
        weight, scales, *biases = mx.depends(parts, [after])
        found = (weight, scales, biases[0] if biases else None)
        return unpack(found, self.group_size, self.bits, self.mode, after.dtype)


def forward(layer: nn.Linear | FrozenLinear, x: mx.array) -> mx.array:
    """What a frozen layer maps x to, for a caller that computes the gradient itself."""
    if not isinstance(layer, FrozenLinear):
        return layer(x)
    y = layer.forward(x)
    return y + layer.bias if "bias" in layer else y


def backward(layer: nn.Linear | FrozenLinear, cotangent: mx.array) -> mx.array:
    """The vector-Jacobian product of a frozen layer."""
    return layer.backward(cotangent) if isinstance(layer, FrozenLinear) else cotangent @ layer.weight


def dequantized(layer: nn.QuantizedLinear, kind: mx.Dtype) -> nn.Linear:
    """A plain linear layer with the same values, evaluated.

    Args:
        kind: type of the matrix.
    """
    made = nn.Linear(1, 1, bias="bias" in layer)
    parts = (layer.weight, layer.scales, layer.get("biases"))
    made.weight = unpack(parts, layer.group_size, layer.bits, layer.mode, kind)
    if "bias" in layer:
        made.bias = layer.bias
    mx.eval(made.weight)
    made.freeze()
    return made


def quantized_layers(model: nn.Module) -> dict[str, nn.QuantizedLinear]:
    """The quantized linear layers of a model, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.QuantizedLinear)}


def keep_dequantized(model: nn.Module, kind: mx.Dtype) -> None:
    """Replace every quantized linear layer by a plain one whose matrix has that type, one after the other."""
    for name, layer in quantized_layers(model).items():
        parent: Any = model
        *path, last = name.split(".")
        for part in path:
            parent = parent[int(part)] if isinstance(parent, list) else getattr(parent, part)
        setattr(parent, last, dequantized(layer, kind))
