"""Dequantization: MLX's, or on CUDA a kernel of our own that writes as fast as the memory takes it.

MLX's writes two numbers a thread and reaches a third of an H100's bandwidth; where every product dequantizes its matrix
first, that was a quarter of a short micro-batch.
"""

from __future__ import annotations

from functools import cache

import mlx.core as mx

from qlora_engine.training.cuda import EIGHT, KINDS, THREADS, Kernel
from qlora_engine.training.device import on_cuda

UNPACK = Kernel(
    "qlorad_unpack",
    ("packed", "scales", "biases"),
    ("made",),
    """
    const uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t word = packed[index];
    const float scale = static_cast<float>(scales[index / WORDS]);
    const float bias = static_cast<float>(biases[index / WORDS]);
    Eight<T> numbers;
    #pragma unroll
    for (int n = 0; n < 8; ++n) {
      numbers.set(n, scale * static_cast<float>((word >> (4 * n)) & 15) + bias);
    }
    write_eight(made + index * int64_t(8), numbers);
    """,
)
BITS = 4  # of a number, of which a word has eight


def unpack(
    parts: tuple[mx.array, mx.array, mx.array | None], group: int, bits: int, mode: str, kind: mx.Dtype
) -> mx.array:
    """A quantized matrix in a floating-point type, (E, D).

    Args:
        parts: the packed numbers, uint32 (E, D × bits / 32), their scales, (E, D / group), and biases, which some
            modes do not have.
        group: numbers that share a scale.
        mode: of quantization, as MLX names it.
        kind: type of the result.
    """
    packed, scales, biases = parts
    fast = bits == BITS and mode == "affine" and kind in KINDS and scales.dtype == kind and packed.size % THREADS == 0
    if biases is None or not fast or not works():
        return mx.dequantize(packed, scales, biases, group, bits, mode, dtype=kind)
    return _unpacked(packed, scales, biases, group)


@cache
def works() -> bool:
    """Whether our kernel is there and gives what MLX gives. Computes something the first time."""
    if not on_cuda():
        return False
    matrix = mx.random.normal((64, 512), key=mx.random.key(0)).astype(mx.bfloat16)
    parts = mx.quantize(matrix, 64, BITS)
    ours, theirs = _unpacked(*parts, 64).astype(mx.float32), mx.dequantize(*parts, 64, BITS).astype(mx.float32)
    # MLX rounds the product before it adds the bias: each rounding is at most 1 in 256.
    return bool((mx.abs(ours - theirs).max() <= mx.abs(theirs).max() / 64).item())


def _unpacked(packed: mx.array, scales: mx.array, biases: mx.array, group: int) -> mx.array:
    rows, words = packed.shape
    (made,) = UNPACK(
        [packed, scales, biases],
        threads=packed.size,
        shapes=[(rows, words * EIGHT)],
        kind=scales.dtype,
        constants=[("WORDS", group // EIGHT)],
    )
    return made
