"""The products with the two matrices of an adapter, in each of the ways that they may lie and be computed.

An adapter adds x @ A @ B to what a frozen layer maps x to. With `back` for the gradient of x @ A, there are six
products: of A, of B, and of their transposes, and the gradients of both.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from qlora_engine.training import adapter_kernels
from qlora_engine.training.adapter_kernels import Layout

Matrices = tuple[mx.array, mx.array]


class Products(Protocol):
    """A way to lay out and to compute. N counts positions, D and E what the layer reads and gives."""

    flat: bool
    """B lies as it is, for one layer after the other; otherwise transposed, for all side by side."""

    def laid(self, adapters: Sequence[Matrices]) -> Matrices:
        """A and B as they lie, of one or several layers: (D, rank) and (rank, E) of each, the scale in B."""

    def apart(self, a: mx.array, b: mx.array) -> list[Matrices]:
        """A and B of each layer again, (D, rank) and (rank, E), or their gradients."""

    def ready(self, b: mx.array) -> mx.array:
        """B as the products take it, to be kept from the forward pass to the backward one."""

    def inner(self, x: mx.array, a: mx.array) -> mx.array:
        """x @ A, (N, rank)."""

    def add(self, y: mx.array, inner: mx.array, ready: mx.array) -> mx.array:
        """y + inner @ B, (N, E)."""

    def back(self, cotangent: mx.array, ready: mx.array) -> mx.array:
        """cotangent @ B.T, (N, rank)."""

    def add_back(self, of_x: mx.array, back: mx.array, a: mx.array) -> mx.array:
        """of_x + back @ A.T, (N, D)."""

    def gradients(self, x: mx.array, back: mx.array, inner: mx.array, cotangent: mx.array) -> Matrices:
        """Those of A and B, as they lie."""


class Upright:
    """Of one layer, whose matrices lie as mlx_lm has them, by MLX's product of matrices, which also adds."""

    flat = True

    def laid(self, adapters: Sequence[Matrices]) -> Matrices:
        """They stay what they are."""
        (pair,) = adapters
        return pair

    def apart(self, a: mx.array, b: mx.array) -> list[Matrices]:
        """They stay what they are."""
        return [(a, b)]

    def ready(self, b: mx.array) -> mx.array:
        """It is."""
        return b

    def inner(self, x: mx.array, a: mx.array) -> mx.array:
        """x @ A."""
        return x @ a

    def add(self, y: mx.array, inner: mx.array, ready: mx.array) -> mx.array:
        """y + inner @ B."""
        return mx.addmm(y, inner, ready)

    def back(self, cotangent: mx.array, ready: mx.array) -> mx.array:
        """cotangent @ B.T."""
        return cotangent @ ready.T

    def add_back(self, of_x: mx.array, back: mx.array, a: mx.array) -> mx.array:
        """of_x + back @ A.T."""
        return mx.addmm(of_x, back, a.T)

    def gradients(self, x: mx.array, back: mx.array, inner: mx.array, cotangent: mx.array) -> Matrices:
        """Those of A, (D, rank), and B, (rank, E)."""
        return x.T @ back, inner.T @ cotangent


class InBlocks:
    """Of layers that read one input, as one adapter of all their ranks.

    A lies transposed, (n × rank, D), and so does B, (E, rank) of all E side by side. What the products take has a block
    of columns for each layer and zeros beside it.

    Args:
        widths: outputs of each layer.
    """

    flat = False

    def __init__(self, widths: Sequence[int]) -> None:
        self._count, self._ends = len(widths), list(itertools.accumulate(widths))
        whose = np.repeat(np.arange(len(widths)), widths)  # (E,)
        self._own = mx.array(whose[:, None] == np.arange(len(widths)))[..., None]  # bool (E, n, 1)
        self._rows = mx.array(np.arange(len(whose)) * len(widths) + whose)  # of (E × n, rank), those that are not zero
        mx.eval(self._own, self._rows)

    def laid(self, adapters: Sequence[Matrices]) -> Matrices:
        """Transposed and below each other."""
        return mx.concatenate([a.T for a, _ in adapters]), mx.concatenate([b.T for _, b in adapters])

    def apart(self, a: mx.array, b: mx.array) -> list[Matrices]:
        """Each layer's rows, transposed."""
        several = zip(mx.split(a, len(self._ends)), mx.split(b, self._ends[:-1]), strict=True)
        return [(of_a.T, of_b.T) for of_a, of_b in several]

    def ready(self, b: mx.array) -> mx.array:
        """In blocks, (E, n × rank)."""
        return mx.where(self._own, b[:, None], mx.zeros((), b.dtype)).reshape(b.shape[0], -1)

    def inner(self, x: mx.array, a: mx.array) -> mx.array:
        """x @ A, (N, n × rank)."""
        return x @ a.T

    def add(self, y: mx.array, inner: mx.array, ready: mx.array) -> mx.array:
        """y + inner @ B."""
        return mx.addmm(y, inner, ready.T)

    def back(self, cotangent: mx.array, ready: mx.array) -> mx.array:
        """cotangent @ B.T."""
        return cotangent @ ready

    def add_back(self, of_x: mx.array, back: mx.array, a: mx.array) -> mx.array:
        """of_x + back @ A.T."""
        return mx.addmm(of_x, back, a)

    def gradients(self, x: mx.array, back: mx.array, inner: mx.array, cotangent: mx.array) -> Matrices:
        """Those of A, (n × rank, D), and B, (E, rank)."""
        return back.T @ x, self._unready(cotangent.T @ inner)

    def _unready(self, gradient: mx.array) -> mx.array:
        """The gradient of B from that of its blocks."""
        return gradient.reshape(-1, gradient.shape[1] // self._count)[self._rows]


class ByKernels:
    """Of one or several layers that read one input, by kernels of our own.

    A lies transposed, (n × rank, D). B lies as (rank, E) of one layer after the other, (rank × E of all,).

    Args:
        rank: of each layer.
        inputs: D.
        widths: outputs of each layer.
    """

    flat = True

    def __init__(self, rank: int, inputs: int, widths: Sequence[int]) -> None:
        self._of_a = Layout(rank * len(widths), (inputs,))
        self._of_b = Layout(rank, tuple(widths))

    @property
    def fits(self) -> bool:
        """Whether there are kernels for these sizes."""
        return self._of_a.fits and self._of_b.fits

    def laid(self, adapters: Sequence[Matrices]) -> Matrices:
        """A transposed, B as it is, below each other and after each other."""
        a, b = mx.concatenate([a.T for a, _ in adapters]), mx.concatenate([b.reshape(-1) for _, b in adapters])
        return mx.contiguous(a), b  # that of one layer alone was not joined, and each kernel would copy it

    def apart(self, a: mx.array, b: mx.array) -> list[Matrices]:
        """Each layer's rows of A, transposed, and its numbers of B."""
        rank = self._of_b.rank
        ends = list(itertools.accumulate(rank * width for width in self._of_b.widths))
        several = zip(mx.split(a, len(ends)), mx.split(b, ends[:-1]), strict=True)
        return [(of_a.T, of_b.reshape(rank, -1)) for of_a, of_b in several]

    def ready(self, b: mx.array) -> mx.array:
        """It is."""
        return b

    def inner(self, x: mx.array, a: mx.array) -> mx.array:
        """x @ A, (N, n × rank)."""
        return adapter_kernels.inner(x, a, self._of_a)

    def add(self, y: mx.array, inner: mx.array, ready: mx.array) -> mx.array:
        """y + inner @ B."""
        return adapter_kernels.add(y, inner, ready, self._of_b)

    def back(self, cotangent: mx.array, ready: mx.array) -> mx.array:
        """cotangent @ B.T."""
        return adapter_kernels.inner(cotangent, ready, self._of_b)

    def add_back(self, of_x: mx.array, back: mx.array, a: mx.array) -> mx.array:
        """of_x + back @ A.T."""
        return adapter_kernels.add(of_x, back, a, self._of_a)

    def gradients(self, x: mx.array, back: mx.array, inner: mx.array, cotangent: mx.array) -> Matrices:
        """Those of A, (n × rank, D), and B, flat."""
        return adapter_kernels.outer(back, x, inner, cotangent, of_x=self._of_a, of_y=self._of_b)


class Adapter(NamedTuple):
    """An adapter's matrices, and how they lie and are computed with.

    Attributes:
        b: as it lies, or as it is ready for the products.
    """

    how: Products
    a: mx.array
    b: mx.array


UPRIGHT = Upright()
