"""Kernels of our own for MLX's CUDA backend, compiled when they are first needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import mlx.core as mx

THREADS = 256
EIGHT = 8  # numbers that a thread reads or writes at once
KINDS = (mx.bfloat16, mx.float16)  # that they read and write
TOLERANCE = 2.0**-6  # of the largest number
TIMES, ROUNDS = 32, 3

HEADER = """
namespace mlx::core::cu {

// Eight numbers of 16 bits: what one thread reads or writes at once.
template <typename T>
struct alignas(16) Eight {
  T numbers[8];
  __device__ float operator[](int n) const { return static_cast<float>(numbers[n]); }
  __device__ void set(int n, float number) { numbers[n] = static_cast<T>(number); }
};

template <typename T>
__device__ Eight<T> read_eight(const T* from) {
  return *reinterpret_cast<const Eight<T>*>(from);
}

template <typename T>
__device__ void write_eight(T* to, const Eight<T>& eight) {
  *reinterpret_cast<Eight<T>*>(to) = eight;
}

}
"""


@dataclass(frozen=True)
class Kernel:
    """A kernel, and how it is started.

    Attributes:
        name: what it is called in a profile.
        inputs, outputs: names of its arrays in the source.
        source: the body of the CUDA function.
        contiguous: whether inputs that are not are copied first.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    source: str
    contiguous: bool = True
    header: str = field(default=HEADER, repr=False)

    def __call__(
        self,
        inputs: Sequence[mx.array],
        *,
        threads: int,
        shapes: Sequence[tuple[int, ...]],
        kind: mx.Dtype,
        block: int = THREADS,
        constants: Sequence[tuple[str, int | bool | mx.Dtype]] = (),
    ) -> list[mx.array]:
        """Its outputs.

        Args:
            inputs: arrays in the order of their names.
            threads: in all; the last block may have some more.
            shapes: of the outputs, all of one type.
            kind: that type.
            block: threads of a block.
            constants: of the source, known when it is compiled.
        """
        made: list[mx.array] = self._compiled(
            inputs=list(inputs),
            template=[("T", kind), *constants],
            grid=(threads, 1, 1),
            threadgroup=(block, 1, 1),
            output_shapes=list(shapes),
            output_dtypes=[kind] * len(shapes),
        )
        return made

    @cached_property
    def _compiled(self) -> Any:
        return mx.fast.cuda_kernel(
            name=self.name,
            input_names=list(self.inputs),
            output_names=list(self.outputs),
            source=self.source,
            header=self.header,
            ensure_row_contiguous=self.contiguous,
        )


def has_tensor_cores() -> bool:
    """Whether the GPU multiplies matrices of 16 bits as our kernels ask it to: from compute capability 8.0."""
    return int(mx.device_info().get("compute_capability_major", 0)) >= 8


Function = Callable[[mx.array], mx.array]
Compared = Callable[[mx.array, mx.array], list[mx.array]]


@dataclass(frozen=True)
class Pair:
    """What MLX computes and what we compute in its place.

    Attributes:
        theirs, ours: what both make of an input and a cotangent; the first is like the input.
        x, cotangent: such as a step has.
    """

    theirs: Compared
    ours: Compared
    x: mx.array
    cotangent: mx.array

    @classmethod
    def of(cls, theirs: Function, ours: Function, x: mx.array, cotangent: mx.array) -> Pair:
        """Of two functions: their gradients and results."""
        return cls(_both_ways(theirs), _both_ways(ours), x, cotangent)

    def agree(self) -> bool:
        """Whether they give the same, but for rounding."""
        arrays = zip(self.theirs(self.x, self.cotangent), self.ours(self.x, self.cotangent), strict=True)
        off = [_off(theirs, ours) for theirs, ours in arrays]
        return all(bool(array.item()) for array in off)

    def seconds(self) -> tuple[float, float]:
        """Of each of them, many times in a row: the best of some rounds."""
        return _seconds(self.theirs, self.x, self.cotangent), _seconds(self.ours, self.x, self.cotangent)


def _both_ways(function: Function) -> Compared:
    def gradient_and_result(x: mx.array, cotangent: mx.array) -> list[mx.array]:
        results, gradients = mx.vjp(function, [x], [cotangent])
        return [gradients[0], results[0]]

    return gradient_and_result


def _off(theirs: mx.array, ours: mx.array) -> mx.array:
    theirs, ours = theirs.astype(mx.float32), ours.astype(mx.float32)
    return mx.abs(ours - theirs).max() <= TOLERANCE * mx.abs(theirs).max()


def _seconds(function: Compared, x: mx.array, cotangent: mx.array) -> float:
    def chain(x: mx.array, cotangent: mx.array) -> mx.array:
        for _ in range(TIMES):
            following, *others = function(x, cotangent)
            # Both anew: what is computed of one array alone would be computed once for all.
            x, cotangent = mx.depends([following, cotangent], others)
        return x

    compiled = mx.compile(chain)
    best = float("inf")
    for number in range(1 + ROUNDS):
        started = time.perf_counter()
        mx.eval(compiled(x, cotangent))
        if number:
            best = min(best, time.perf_counter() - started)
    return round(best / TIMES, 8)
