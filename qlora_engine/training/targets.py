"""What a batch learns: its inputs, and the tokens that some of their positions must predict, on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import mlx.core as mx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from qlora_engine.job.preflight.batch import GRID, Grid
from qlora_engine.training.data import Document


@dataclass(frozen=True)
class Targets:
    """Inputs and targets of a batch.

    Attributes:
        inputs: int32 (B, T).
        rows: int32 (N,), positions in the flattened inputs that predict a target; filled up with the first of them
            to one of few sizes, so that few shapes are compiled.
        tokens: int32 (N,), the targets.
        count: how many of the rows count.
        segments: int32 (B, T), which document of its row a position belongs to, from 1; 0 is padding. None where each
            row holds one document, which a causal mask alone keeps from the padding after it.
        filled: how many positions hold a token of a document; the rest is padding.
    """

    inputs: NDArray[np.int32]
    rows: NDArray[np.int32]
    tokens: NDArray[np.int32]
    count: int
    segments: NDArray[np.int32] | None
    filled: int

    @classmethod
    def of(cls, tokens: ArrayLike, supervised: ArrayLike, grid: Grid = GRID["cpu"]) -> Self:
        """The targets of rows of one document.

        Args:
            tokens: int32 (B, T), padded on the right.
            supervised: bool (B, T), True where the token is a target; column 0 never is one.
            grid: says how many targets are computed.
        """
        whole = np.asarray(tokens, np.int32)
        inputs = whole[:, :-1]
        learned = np.asarray(supervised, np.bool_)[:, 1:]
        return cls._from(inputs, whole[:, 1:], learned, segments=None, filled=inputs.size, grid=grid)

    @classmethod
    def joined(cls, rows: Sequence[Sequence[Document]], width: int, grid: Grid = GRID["cpu"]) -> Self:
        """The targets of rows of several documents.

        A document's last token is no input: it predicts nothing, least of all the next document.

        Args:
            rows: documents of each row.
            width: T, at least the inputs of every row.
            grid: says how many targets are computed.
        """
        shape = (len(rows), width)
        inputs, following, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        learned = np.zeros(shape, np.bool_)
        for row, documents in enumerate(rows):
            start = 0
            for number, document in enumerate(documents, 1):
                part = (row, slice(start, start + max(0, len(document) - 1)))
                inputs[part], following[part] = document.tokens[:-1], document.tokens[1:]
                learned[part], segments[part] = document.supervised[1:], number
                start = part[1].stop
        several = any(len(documents) > 1 for documents in rows)
        filled = int(np.count_nonzero(segments))
        numbers = segments if several else None
        return cls._from(inputs, following, learned, segments=numbers, filled=filled, grid=grid)

    @classmethod
    def _from(
        cls,
        inputs: NDArray[np.int32],
        following: NDArray[np.int32],
        learned: NDArray[np.bool_],
        *,
        segments: NDArray[np.int32] | None,
        filled: int,
        grid: Grid,
    ) -> Self:
        found = np.flatnonzero(learned)
        rows = np.full(grid.targets(len(found), inputs.size), found[0] if len(found) else 0, np.int32)
        rows[: len(found)] = found
        return cls(inputs, rows, following.reshape(-1)[rows], len(found), segments, filled)

    @property
    def shape(self) -> tuple[int, ...]:
        """What a computation is compiled for: B, T and N, and whether rows hold several documents."""
        return (*self.inputs.shape, *self.rows.shape, int(self.segments is not None))

    @property
    def positions(self) -> int:
        """Inputs in all rows, padding included."""
        return self.inputs.size

    @property
    def highest(self) -> int:
        """The highest token."""
        return max(int(self.inputs.max()), int(self.tokens.max()))

    def arrays(self) -> tuple[mx.array, ...]:
        """inputs, rows, tokens, count and, where there are any, segments, int32, for MLX."""
        arrays = (mx.array(self.inputs), mx.array(self.rows), mx.array(self.tokens), mx.array(self.count))
        return arrays if self.segments is None else (*arrays, mx.array(self.segments))
