"""What our CUDA kernels give, computed by MLX: how models use them is tested with these in their place."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from qlora_engine.training import cuda

Arrays = list[mx.array]


def stand_in(kernel: cuda.Kernel, inputs: Arrays, *, shapes: Sequence[Any], constants: Any = (), **_: Any) -> Arrays:
    """The outputs of a kernel."""
    made = STAND_INS[kernel.name](inputs, dict(constants))
    return [array.reshape(shape) for array, shape in zip(made, shapes, strict=True)]


def _turn(inputs: Arrays, _: Any) -> Arrays:
    x, angles = inputs
    (one, other), (cosine, sine) = mx.split(x, 2, axis=-1), mx.split(angles[: x.shape[2]], 2, axis=-1)
    both = mx.concatenate([one * cosine - other * sine, one * sine + other * cosine], axis=-1)
    return [both.transpose(0, 2, 1, 3)]


def _norm_back(inputs: Arrays, known: Any) -> Arrays:
    x, weight, cotangent = inputs
    (eps,) = struct.unpack("f", struct.pack("i", known["EPS"]))
    return mx.vjp(lambda x: mx.fast.rms_norm(x, weight, eps), [x], [cotangent])[1]


def _gated(inputs: Arrays, _: Any) -> Arrays:
    # By way of a gradient: MLX's compiler fails where one array is tied to two that are computed alike.
    return mx.vjp(_plain, inputs, [_plain(inputs[0])])[0]


def _gated_back(inputs: Arrays, _: Any) -> Arrays:
    both, cotangent = inputs
    (product,), (gradient,) = mx.vjp(_plain, [both], [cotangent])
    return [gradient, product]


def _plain(both: mx.array) -> mx.array:
    gate, up = mx.split(both, 2, axis=-1)
    return gate * mx.sigmoid(gate) * up


class _Layers:
    """What of an array is each layer's, by the layout that a kernel of adapters gets."""

    def __init__(self, layout: mx.array) -> None:
        self._count, self._rank = layout.shape
        self._starts = np.array(layout)[1:, 0].tolist()  # but the first, at which nothing is split

    def matrices(self, w: mx.array) -> Arrays:
        parts = mx.split(w.reshape(-1), [self._rank * start for start in self._starts])
        return [part.reshape(self._rank, -1) for part in parts]

    def columns(self, x: mx.array) -> Arrays:
        return list(mx.split(x, self._starts, axis=1))

    def ranks(self, inner: mx.array) -> Arrays:
        return list(mx.split(inner, self._count, axis=1))


def _inner(inputs: Arrays, _: Any) -> Arrays:
    x, w, layout = inputs
    layers = _Layers(layout)
    pairs = zip(layers.columns(x), layers.matrices(w), strict=True)
    return [mx.concatenate([mine @ matrix.T for mine, matrix in pairs], axis=1)]


def _outer(inputs: Arrays, _: Any) -> Arrays:
    made = []
    for inner, x, layout in (inputs[:3], inputs[3:]):
        layers = _Layers(layout)
        pairs = zip(layers.ranks(inner), layers.columns(x), strict=True)
        made.append(mx.concatenate([(mine.T @ of_x).reshape(-1) for mine, of_x in pairs]))
    return made


def _add(inputs: Arrays, _: Any) -> Arrays:
    y, inner, w, layout = inputs
    layers = _Layers(layout)
    pairs = zip(layers.ranks(inner), layers.matrices(w), strict=True)
    return [y + mx.concatenate([mine @ matrix for mine, matrix in pairs], axis=1)]


def _join(inputs: Arrays, _: Any) -> Arrays:
    return [mx.concatenate([array.reshape(-1) for array in inputs[:-1]]).astype(mx.float32)]


STAND_INS: dict[str, Callable[[Arrays, Any], Arrays]] = {
    "qlorad_turn": _turn,
    "qlorad_norm_back": _norm_back,
    "qlorad_gated": _gated,
    "qlorad_gated_back": _gated_back,
    "qlorad_inner": _inner,
    "qlorad_outer": _outer,
    "qlorad_add_product": _add,
    "qlorad_join": _join,
}
