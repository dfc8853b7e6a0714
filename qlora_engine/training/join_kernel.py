"""Gradients of many matrices joined in a vector by one kernel on CUDA, where MLX starts a copy for each of them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import mlx.core as mx

from qlora_engine.training.cuda import EIGHT, Kernel
from qlora_engine.training.vectors import ALIGNED

MOST = 400  # arrays: a kernel's parameters have 4 KB


def can_join(sizes: Sequence[int]) -> bool:
    """Whether there is a kernel for arrays of so many numbers: no eight of them lie in two."""
    return len(sizes) <= MOST and all(size % ALIGNED == 0 for size in sizes)


def join(arrays: Sequence[mx.array]) -> mx.array:
    """The numbers of these arrays after each other, float32.

    Args:
        arrays: bfloat16 or float16, for which there is a kernel.
    """
    ends = list(itertools.accumulate(array.size for array in arrays))
    (made,) = kernel_for(len(arrays))(
        [*arrays, _starts(tuple(ends))],
        threads=-(-ends[-1] // EIGHT),
        shapes=[(ends[-1],)],
        kind=mx.float32,
        constants=[("COUNT", len(arrays)), ("Narrow", arrays[0].dtype)],
    )
    return made


@functools.cache
def _starts(ends: tuple[int, ...]) -> mx.array:
    made = mx.array([0, *ends], mx.uint32)
    mx.eval(made)
    return made


@functools.cache
def kernel_for(count: int) -> Kernel:
    """That of so many arrays."""
    names = tuple(f"array_{n}" for n in range(count))
    cases = "\n".join(f"      case {n}: from = {name}; break;" for n, name in enumerate(names))
    return Kernel(
        "qlorad_join",
        (*names, "starts"),
        ("vector",),
        f"""
    const uint32_t at = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at >= starts[COUNT]) return;
    uint32_t which = 0, end = COUNT;
    while (end - which > 1) {{
      const uint32_t middle = (which + end) / 2;
      (starts[middle] <= at ? which : end) = middle;
    }}
    const Narrow* from = nullptr;
    switch (which) {{
{cases}
    }}
    const Eight<Narrow> numbers = read_eight(from + at - starts[which]);
    auto* to = reinterpret_cast<float4*>(vector + at);
    __stcg(to, float4{{numbers[0], numbers[1], numbers[2], numbers[3]}});
    __stcg(to + 1, float4{{numbers[4], numbers[5], numbers[6], numbers[7]}});
    """,
    )
