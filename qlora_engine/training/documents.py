"""The documents of a data file: what is known of each without reading it, and each when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

from qlora_engine.training.data import Document, cut_to
from qlora_engine.training.token_rows import TokenRows


class Documents(Sequence[Document]):
    """Tokenized rows, cut to a window; holds some twelve bytes a row and reads a row when it is asked for.

    Args:
        rows: whole.
        longest: max_seq_length, tokens.

    Attributes:
        lengths: int32 (rows,), tokens after the cut.
        cut: int32 (rows,), tokens that did not fit.
        targets: int32 (rows,), tokens that are learned, after the cut.
    """

    def __init__(self, rows: TokenRows, longest: int) -> None:
        self.rows, self.longest = rows, longest
        whole = rows.index.lengths
        self.lengths: NDArray[np.int32] = np.minimum(whole, longest).astype(np.int32)
        self.cut: NDArray[np.int32] = (whole - self.lengths).astype(np.int32)
        self.targets = self._targets()
        for known in (self.lengths, self.cut, self.targets):
            known.flags.writeable = False

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: SupportsIndex) -> Document: ...
    @overload
    def __getitem__(self, at: slice) -> list[Document]: ...
    def __getitem__(self, at: SupportsIndex | slice) -> Document | list[Document]:
        """A document; raises `QloradError` when it is damaged."""
        if isinstance(at, slice):
            return [self[row] for row in range(*at.indices(len(self)))]
        row = range(len(self))[at]
        return cut_to(*self.rows.read(row), self.longest)

    def first_over(self, token: int) -> tuple[int, int] | None:
        """The first row, from 0, that holds a token over this one after the cut, and its highest; None without."""
        for row in np.flatnonzero(self.rows.index.highest > token):  # before the cut: it may have taken the token
            highest = int(self[row].tokens.max(initial=0))
            if highest > token:
                return int(row), highest
        return None

    def _targets(self) -> NDArray[np.int32]:
        """Only rows that are cut and partly masked need to be read for this."""
        targets = self.rows.index.targets
        cut = self.cut > 0
        if not cut.any():
            return targets
        targets = np.array(targets)
        everything = targets == self.rows.index.lengths - 1  # all but the first, which nothing predicts
        targets[cut & everything] = self.longest - 1
        for row in np.flatnonzero(cut & ~everything & (targets > 0)):
            targets[row] = self[row].targets
        return targets


def lengths_of(documents: Sequence[Document]) -> Sequence[int]:
    """The length of each document; of `Documents` a view of what is known, four bytes a row."""
    if isinstance(documents, Documents):
        return documents.lengths.data
    return [len(document) for document in documents]
