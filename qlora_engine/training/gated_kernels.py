"""silu(gate) × up of both side by side, and its gradient, in one kernel each on CUDA.

MLX would read the gate with strides and compute the gradient of either half as if of both; the product that the
backward pass needs again is another kernel.
"""

from __future__ import annotations

import mlx.core as mx

from qlora_engine.training.cuda import EIGHT, Kernel

FORWARD = Kernel(
    "qlorad_gated",
    ("both",),
    ("product",),
    """
    const uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
    constexpr int PARTS = WIDTH / 8;
    const uint32_t row = index / PARTS, at = index % PARTS * 8;
    if (row >= both_shape[0]) return;
    const Eight<T> gate = read_eight(both + row * int64_t(2 * WIDTH) + at);
    const Eight<T> up = read_eight(both + row * int64_t(2 * WIDTH) + WIDTH + at);
    Eight<T> made;
    #pragma unroll
    for (int n = 0; n < 8; ++n) {
      made.set(n, gate[n] / (1.0f + expf(-gate[n])) * up[n]);
    }
    write_eight(product + row * int64_t(WIDTH) + at, made);
    """,
)
BACKWARD = Kernel(
    "qlorad_gated_back",
    ("both", "cotangent"),
    ("gradient", "product"),
    """
    const uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
    constexpr int PARTS = WIDTH / 8;
    const uint32_t row = index / PARTS, at = index % PARTS * 8;
    if (row >= both_shape[0]) return;
    const Eight<T> gate = read_eight(both + row * int64_t(2 * WIDTH) + at);
    const Eight<T> up = read_eight(both + row * int64_t(2 * WIDTH) + WIDTH + at);
    const Eight<T> back = read_eight(cotangent + row * int64_t(WIDTH) + at);
    Eight<T> of_gate, of_up, made;
    #pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float share = 1.0f / (1.0f + expf(-gate[n]));
      const float silu = gate[n] * share;
      of_gate.set(n, back[n] * up[n] * (share + silu * (1.0f - share)));
      of_up.set(n, back[n] * silu);
      made.set(n, silu * up[n]);
    }
    write_eight(gradient + row * int64_t(2 * WIDTH) + at, of_gate);
    write_eight(gradient + row * int64_t(2 * WIDTH) + WIDTH + at, of_up);
    write_eight(product + row * int64_t(WIDTH) + at, made);
    """,
)


def product_of_both(both: mx.array) -> mx.array:
    """silu(gate) × up, (N, D).

    Args:
        both: bfloat16 or float16 (N, 2 D), the gate first; D is a multiple of 8.
    """
    rows, width = both.shape[0], both.shape[1] // 2
    (made,) = FORWARD(
        [both], threads=rows * (width // EIGHT), shapes=[(rows, width)], kind=both.dtype, constants=[("WIDTH", width)]
    )
    return made


def gradient_of_both(both: mx.array, cotangent: mx.array) -> tuple[mx.array, mx.array]:
    """The gradient of silu(gate) × up for both, (N, 2 D), and the product itself again, (N, D).

    Args:
        both: as above.
        cotangent: (N, D) of the same type.
    """
    rows, width = cotangent.shape
    gradient, product = BACKWARD(
        [both, cotangent],
        threads=rows * (width // EIGHT),
        shapes=[both.shape, cotangent.shape],
        kind=both.dtype,
        constants=[("WIDTH", width)],
    )
    return gradient, product
