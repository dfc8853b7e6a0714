"""The B matrices of siblings, below each other, as one with a block of columns for each of them, on CUDA.

MLX selects number by number over three axes, at a fifth of the bandwidth, and gathers rows to undo it.
"""

from __future__ import annotations

import mlx.core as mx

from qlora_engine.training.cuda import EIGHT, Kernel

SPREAD = Kernel(
    "qlorad_spread",
    ("b", "whose"),
    ("blocks",),
    """
    const uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
    constexpr int PARTS = MEMBERS * RANK / 8;
    const uint32_t row = index / PARTS, column = index % PARTS * 8;
    if (row >= b_shape[0]) return;
    Eight<T> made;
    if (column / RANK == whose[row]) {
      made = read_eight(b + row * int64_t(RANK) + column % RANK);
    } else {
      for (int n = 0; n < 8; ++n) made.set(n, 0.0f);
    }
    write_eight(blocks + row * int64_t(MEMBERS * RANK) + column, made);
    """,
)
GATHER = Kernel(
    "qlorad_gather",
    ("blocks", "whose"),
    ("b",),
    """
    const uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t row = index / (RANK / 8), column = index % (RANK / 8) * 8;
    if (row >= blocks_shape[0]) return;
    const T* from = blocks + row * int64_t(MEMBERS * RANK) + whose[row] * RANK;
    write_eight(b + row * int64_t(RANK) + column, read_eight(from + column));
    """,
)


def spread(b: mx.array, whose: mx.array, members: int) -> mx.array:
    """Each row's numbers in the columns of its member, and zeros beside them, (E, members × rank).

    Args:
        b: bfloat16 or float16 (E, rank), whose rank is a multiple of 8.
        whose: uint32 (E,), the member of each row.
    """
    rows, rank = b.shape
    (made,) = SPREAD(
        [b, whose],
        threads=rows * members * rank // EIGHT,
        shapes=[(rows, members * rank)],
        kind=b.dtype,
        constants=[("MEMBERS", members), ("RANK", rank)],
    )
    return made


def gather(blocks: mx.array, whose: mx.array, members: int) -> mx.array:
    """The numbers in the columns of each row's member, (E, rank).

    Args:
        blocks: (E, members × rank).
        whose: as above.
    """
    rows, rank = blocks.shape[0], blocks.shape[1] // members
    (made,) = GATHER(
        [blocks, whose],
        threads=rows * rank // EIGHT,
        shapes=[(rows, rank)],
        kind=blocks.dtype,
        constants=[("MEMBERS", members), ("RANK", rank)],
    )
    return made
