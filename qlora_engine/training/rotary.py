"""Rotary position embedding (Su et al. 2021) on CUDA, as fast as memory takes it.

MLX's kernel reads one number at a time and computes sines at each call: 23 µs for what 4 would read and write, 128
times in a step of 32 layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
from mlx import nn

from qlora_engine.training.cuda import EIGHT, KINDS, Kernel, Pair

NDIM = 4
HEADS, OTHERS = 32, 16  # side by side, as queries, keys and values are: to compare it with MLX's
SHORT = 16  # positions
TURN = Kernel(
    "qlorad_turn",
    ("x", "angles"),
    ("turned",),
    """
    constexpr int HALF = WIDTH / 2, PARTS = HALF / 8;
    uint32_t rest = blockIdx.x * blockDim.x + threadIdx.x;
    const int part = rest % PARTS; rest /= PARTS;
    const int heads = x_shape[1], length = x_shape[2];
    const int head = rest % heads; rest /= heads;
    const int position = rest % length; rest /= length;
    if (rest >= x_shape[0]) return;

    const T* from = x + rest * x_strides[0] + head * x_strides[1] + position * x_strides[2];
    T* to = turned + ((rest * int64_t(length) + position) * heads + head) * WIDTH + part * 8;
    const float* angle = angles + position * int64_t(WIDTH) + part * 8;
    Eight<T> first, second;
    if (x_strides[3] == 1 && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
      first = read_eight(from + part * 8);
      second = read_eight(from + HALF + part * 8);
    } else {
      for (int n = 0; n < 8; ++n) {
        first.numbers[n] = from[(part * 8 + n) * x_strides[3]];
        second.numbers[n] = from[(HALF + part * 8 + n) * x_strides[3]];
      }
    }
    #pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float cosine = angle[n], sine = angle[HALF + n];
      const float one = first[n], other = second[n];
      first.set(n, one * cosine - other * sine);
      second.set(n, one * sine + other * cosine);
    }
    write_eight(to, first);
    write_eight(to + HALF, second);
    """,
    contiguous=False,
)


def replace_rotary(model: nn.Module, longest: int) -> int:
    """Have a model's rotary embeddings that turn whole heads, as halves, use the kernel above; how many do.

    Not those whose angles depend on how long the row is.

    The objects get a subclass of their class.

    Args:
        longest: positions of a row; longer ones are turned as before.
    """
    shared: list[Angles] = []
    count = 0
    for rope in _usable(model):
        own, short = Angles.of(rope, longest), Angles.of(rope, min(SHORT, longest))
        if not _same(short.there, own.there[: len(short.there)]):
            continue  # some scale their angles to the length of the row
        angles = next((known for known in shared if _same(known.there, own.there)), own)
        if angles is own:
            shared.append(own)
        rope.__class__ = type(f"Turned{type(rope).__name__}", (Turned, type(rope)), {"angles": angles})
        count += 1
    return count


def pair(model: nn.Module, rows: int, kind: mx.Dtype) -> Pair | None:
    """The kernel and MLX's, to be compared over that many positions; None where nothing would use it."""
    found = _usable(model)
    if not found:
        return None
    rope = found[0]
    angles = Angles.of(rope, rows)
    x, cotangent = (
        mx.random.normal(shape, key=mx.random.key(0)).astype(kind)
        for shape in ((1, rows, HEADS + OTHERS, rope.dims), (1, HEADS, rows, rope.dims))
    )

    def heads(x: mx.array) -> mx.array:
        return x[:, :, :HEADS].transpose(0, 2, 1, 3)

    return Pair.of(lambda x: rope(heads(x)), lambda x: turned(heads(x), angles), x, cotangent)


@dataclass(frozen=True)
class Angles:
    """Cosines of each position and then the sines, float32 (T, D), to turn there and back."""

    there: mx.array
    back: mx.array

    @classmethod
    def of(cls, rope: nn.Module, longest: int) -> Angles:
        """What a module makes of ones and zeros, with any scale that it applies."""
        ones = mx.ones((1, 1, longest, rope.dims // 2))
        there = rope(mx.concatenate([ones, mx.zeros_like(ones)], axis=-1))[0, 0]
        back = there * mx.concatenate([ones, -ones], axis=-1)[0, 0]
        mx.eval(there, back)
        return cls(there, back)


class Turned(nn.Module):
    """Put before the class of a rotary embedding.

    Attributes:
        angles: of as many positions as a row may have.
    """

    angles: ClassVar[Angles]

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        """Turn (B, H, T, D) by its positions, counted from the offset."""
        longest, width = self.angles.there.shape
        fits = x.ndim == NDIM and x.dtype in KINDS and x.shape[2] <= longest and x.shape[3] == width
        if fits and isinstance(offset, int) and offset == 0:
            return turned(x, self.angles)
        result: mx.array = super().__call__(x, offset=offset)
        return result


def turned(x: mx.array, angles: Angles) -> mx.array:
    """Rotate each pair of a head's halves.

    Args:
        x: (B, H, T, D), of bfloat16 or float16.
        angles: of T positions at least.
    """

    @mx.custom_function
    def forward(x: mx.array) -> mx.array:
        return _turn(x, angles.there)

    @forward.vjp
    def backward(_x: mx.array, cotangent: mx.array, _output: mx.array) -> mx.array:
        return _turn(cotangent, angles.back)

    result: Any = forward(x)
    y: mx.array = result
    return y


def _turn(x: mx.array, angles: mx.array) -> mx.array:
    many, heads, length, width = x.shape
    (made,) = TURN(
        [x, angles],
        threads=many * heads * length * (width // 2 // EIGHT),
        shapes=[(many, length, heads, width)],
        kind=x.dtype,
        constants=[("WIDTH", width)],
    )
    return made.transpose(0, 2, 1, 3)


def _usable(model: nn.Module) -> list[nn.Module]:
    """Rotary embeddings that turn whole heads, as halves."""
    found = {id(module.rope): module for _, module in model.named_modules() if "rope" in module}
    return [module.rope for module in found.values() if _turns_halves(module)]


def _turns_halves(attention: nn.Module) -> bool:
    rope = attention.rope
    width, pairs = getattr(rope, "dims", None), getattr(rope, "traditional", True)
    if not isinstance(width, int) or width % (2 * EIGHT) or pairs or isinstance(rope, Turned):
        return False
    return bool(getattr(attention, "head_dim", width) == width)


def _same(one: mx.array, other: mx.array) -> bool:
    return bool(mx.array_equal(one, other).item())
