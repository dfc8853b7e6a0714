"""Trained arrays in one long vector: an optimizer step of a few kernels where there were thousands."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

ALIGNED = 64  # each matrix begins at a multiple of so many numbers: a GPU's products want aligned addresses

Vectors = dict[str, mx.array]


@dataclass(frozen=True)
class Leaf:
    """One array, and where it lies in its vector.

    Attributes:
        turned: it lies there transposed.
    """

    path: str
    shape: tuple[int, ...]
    start: int
    turned: bool = False

    @property
    def end(self) -> int:
        """Of its numbers, without those that align the next."""
        return self.start + math.prod(self.shape)

    def part_of(self, vector: mx.array) -> mx.array:
        """The array. One operation, where a slice and a reshape would be two, for each of hundreds."""
        strides = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        return mx.as_strided(vector, self.shape, [1, self.shape[0]] if self.turned else strides, self.start)

    def part_of_host(self, vector: np.ndarray) -> np.ndarray:
        """The same of a vector that NumPy reads, without a copy."""
        numbers = vector[self.start : self.end]
        return numbers.reshape(self.shape[::-1]).T if self.turned else numbers.reshape(self.shape)

    def numbers(self, array: mx.array) -> mx.array:
        """An array as it lies in a vector, 1-D."""
        return (array.T if self.turned else array).reshape(-1)


@dataclass(frozen=True)
class Group:
    """Arrays that are treated alike, and share a vector if they are joined.

    Attributes:
        leaves: the arrays, in the order of the vector.
        pieces: what the computation takes: a leaf each, or several that lie there together, by the first one's path.
        length: of the vector.
        kind: the type to compute in.
        factor: what the computation multiplies them by.
        is_b: they are the B matrices of adapters.
        joined: they share a vector; otherwise the one leaf keeps its shape.
    """

    leaves: tuple[Leaf, ...]
    pieces: tuple[Leaf, ...]
    length: int
    kind: mx.Dtype
    factor: float
    is_b: bool
    joined: bool

    def join(self, arrays: Mapping[str, mx.array]) -> mx.array:
        """The vector of these arrays, by path; zeros between them."""
        return self._join(self.leaves, arrays)

    def join_pieces(self, arrays: Mapping[str, mx.array]) -> mx.array:
        """The same of pieces."""
        return self._join(self.pieces, arrays)

    def apart(self, vector: mx.array) -> dict[str, mx.array]:
        """The arrays of a vector, by path: views of it."""
        return self._apart(self.leaves, vector)

    def apart_on_host(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """The same of a vector that NumPy reads."""
        if not self.joined:
            return {self.leaves[0].path: vector}
        return {leaf.path: leaf.part_of_host(vector) for leaf in self.leaves}

    def in_pieces(self, vector: mx.array) -> dict[str, mx.array]:
        """Its pieces."""
        return self._apart(self.pieces, vector)

    def _join(self, leaves: tuple[Leaf, ...], arrays: Mapping[str, mx.array]) -> mx.array:
        if not self.joined:
            return arrays[leaves[0].path]
        ends = [*(leaf.start for leaf in leaves[1:]), self.length]
        parts = []
        for leaf, end in zip(leaves, ends, strict=True):
            parts.append(leaf.numbers(arrays[leaf.path]))
            if end > leaf.end:
                parts.append(mx.zeros((end - leaf.end,), parts[-1].dtype))
        return mx.concatenate(parts)

    def _apart(self, leaves: tuple[Leaf, ...], vector: mx.array) -> dict[str, mx.array]:
        if not self.joined:
            return {leaves[0].path: vector}
        return {leaf.path: leaf.part_of(vector) for leaf in leaves}


@dataclass(frozen=True)
class Joint:
    """Matrices that are one piece of a vector.

    Attributes:
        paths: of the matrices.
        turned: they are transposed, of as many columns then, and the piece is a matrix of all their rows; otherwise the
            piece is their numbers, 1-D.
    """

    paths: tuple[str, ...]
    turned: bool

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Of the piece."""
        if self.turned:
            return sum(shapes[path][1] for path in self.paths), shapes[self.paths[0]][0]
        return (sum(math.prod(shapes[path]) for path in self.paths),)


def laid_out(
    shapes: Mapping[str, tuple[int, ...]], joint: Iterable[Joint]
) -> tuple[tuple[Leaf, ...], tuple[Leaf, ...], int]:
    """The leaves of a vector, its pieces, and its length.

    Args:
        shapes: of the arrays, by path.
        joint: those of them that lie together, without a gap.
    """
    together = {path: piece for piece in joint for path in piece.paths}
    leaves: list[Leaf] = []
    pieces: list[Leaf] = []
    start = 0
    for piece in dict.fromkeys(together.get(path, path) for path in shapes):
        paths = piece.paths if isinstance(piece, Joint) else (piece,)
        shape = piece.shape(shapes) if isinstance(piece, Joint) else shapes[piece]
        pieces.append(Leaf(paths[0], shape, start))
        for path in paths:
            leaves.append(Leaf(path, shapes[path], start, isinstance(piece, Joint) and piece.turned))
            start += -(-math.prod(shapes[path]) // ALIGNED) * ALIGNED
    return tuple(leaves), tuple(pieces), start


def fits_together(shapes: Iterable[tuple[int, ...]]) -> bool:
    """Whether arrays can lie in a vector without a gap between them."""
    return all(math.prod(shape) % ALIGNED == 0 for shape in shapes)
