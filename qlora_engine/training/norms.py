"""Root-mean-square normalization (Zhang & Sennrich 2019) whose weight is frozen, on CUDA.

MLX's backward pass computes the weight's gradient too, in two more kernels a layer.
"""

from __future__ import annotations

import struct
from typing import Any

import mlx.core as mx
from mlx import nn

from qlora_engine.training.cuda import EIGHT, KINDS, Kernel, Pair

BLOCKS = (1024, 512, 256, 128, 64, 32)  # threads
BACK = Kernel(
    "qlorad_norm_back",
    ("x", "weight", "cotangent"),
    ("gradient",),
    """
    constexpr int CHUNKS = WIDTH / (8 * BLOCK), WARPS = BLOCK / 32;
    __shared__ float2 sums[WARPS];
    const int64_t row = int64_t(blockIdx.x) * WIDTH;
    Eight<T> xs[CHUNKS], weighted[CHUNKS];
    float squares = 0, dot = 0;
    #pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      const int at = (chunk * BLOCK + threadIdx.x) * 8;
      xs[chunk] = read_eight(x + row + at);
      const Eight<T> w = read_eight(weight + at);
      weighted[chunk] = read_eight(cotangent + row + at);
      #pragma unroll
      for (int n = 0; n < 8; ++n) {
        const float number = xs[chunk][n];
        squares += number * number;
        dot += number * weighted[chunk][n] * w[n];
      }
    }
    #pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) {
      squares += __shfl_xor_sync(0xffffffff, squares, lane);
      dot += __shfl_xor_sync(0xffffffff, dot, lane);
    }
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = make_float2(squares, dot);
    __syncthreads();
    squares = dot = 0;
    #pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) {
      squares += sums[warp].x;
      dot += sums[warp].y;
    }
    const float scale = rsqrtf(squares / WIDTH + __int_as_float(EPS));
    const float share = dot / WIDTH * scale * scale * scale;
    #pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      const int at = (chunk * BLOCK + threadIdx.x) * 8;
      const Eight<T> w = read_eight(weight + at);
      Eight<T> made;
      #pragma unroll
      for (int n = 0; n < 8; ++n) {
        made.set(n, scale * weighted[chunk][n] * w[n] - share * xs[chunk][n]);
      }
      write_eight(gradient + row + at, made);
    }
    """,
)


def replace_norms(model: nn.Module) -> int:
    """Have a model's normalizations with a frozen weight use the kernel above in the backward pass; how many do."""
    found = _usable(model)
    for module in found:
        module.__class__ = Normalized
    return len(found)


def pair(model: nn.Module, rows: int, kind: mx.Dtype) -> Pair | None:
    """The kernel and MLX's, to be compared over that many positions; None where nothing would use it."""
    found = [module for module in _usable(model) if module.weight.dtype == kind]
    if not found:
        return None
    weight, eps = found[0].weight, found[0].eps
    x, cotangent = (mx.random.normal((rows, weight.size), key=mx.random.key(n)).astype(kind) for n in range(2))
    return Pair.of(lambda x: mx.fast.rms_norm(x, weight, eps), lambda x: normalized(x, weight, eps), x, cotangent)


class Normalized(nn.RMSNorm):
    """The layer, whose backward pass leaves its weight out."""

    def __call__(self, x: mx.array) -> mx.array:
        """Normalize (..., D)."""
        if x.dtype == self.weight.dtype:
            return normalized(x, self.weight, self.eps)
        y: mx.array = mx.fast.rms_norm(x, self.weight, self.eps)
        return y


def normalized(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    """x over the root of its mean square, times the weight.

    Args:
        x: (..., D).
        weight: (D,) of the same type, frozen.
        eps: added to the mean square.
    """

    @mx.custom_function
    def forward(x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, weight, eps)

    @forward.vjp
    def backward(x: mx.array, cotangent: mx.array, _output: mx.array) -> mx.array:
        width, block = weight.size, _block(weight.size)
        (bits,) = struct.unpack("i", struct.pack("f", eps))
        (made,) = BACK(
            [x, weight, cotangent],
            threads=x.size // width * block,
            shapes=[x.shape],
            kind=x.dtype,
            block=block,
            constants=[("WIDTH", width), ("BLOCK", block), ("EPS", bits)],
        )
        return made

    result: Any = forward(x)
    y: mx.array = result
    return y


def _usable(model: nn.Module) -> list[nn.RMSNorm]:
    """Normalizations that are not trained, and as wide as the kernel can take."""
    return [
        module
        for _, module in model.named_modules()
        if type(module) is nn.RMSNorm
        and "weight" not in module.trainable_parameters()
        and module.weight.dtype in KINDS
        and _block(module.weight.size)
    ]


def _block(width: int) -> int:
    """Threads for a row, of eight numbers each; 0 where no such number fits."""
    return next((block for block in BLOCKS if width % (EIGHT * block) == 0), 0)
