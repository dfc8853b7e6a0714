"""Tokenized rows as bytes, in a file or in memory, and an index of them; each row is checked whenever it is read."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from qlora_engine.training.encode import Encoded
from qlora_engine.training.spool import Spool

TOKEN_BYTES = 5  # an int32 token and a bool that says whether it is a target, little-endian


class RowDamaged(Exception):
    """The bytes of a row are not those that were written."""


@dataclass(frozen=True)
class RowIndex:
    """What is known of each row without reading it.

    Attributes:
        starts: int64 (rows + 1,), tokens before each row; the last is their number.
        targets: int32 (rows,), tokens that are learned.
        highest: int32 (rows,), highest token; 0 of an empty row.
        checks: uint32 (rows,), CRC-32 of each row's bytes.
    """

    starts: NDArray[np.int64]
    targets: NDArray[np.int32]
    highest: NDArray[np.int32]
    checks: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 (rows,), tokens of each row."""
        return self.starts[1:] - self.starts[:-1]

    @classmethod
    def size(cls, rows: int) -> int:
        """Bytes of an index of so many rows."""
        return 20 * rows + 8

    def parts(self) -> list[bytes]:
        """Its arrays one after the other, little-endian."""
        arrays = (self.starts, self.targets, self.highest, self.checks)
        return [array.astype(array.dtype.newbyteorder("<")).tobytes() for array in arrays]

    @classmethod
    def mapped(cls, path: Path, rows: int) -> Self:
        """The index in a file of `parts`, mapped into memory and not read."""

        def column(kind: str, offset: int, count: int) -> NDArray[np.generic]:
            return np.memmap(path, kind, "r", offset, (count,)) if count else np.empty(0, kind)

        starts, rest = column("<i8", 0, rows + 1), 8 * (rows + 1)
        targets, highest, checks = (
            column(kind, rest + 4 * rows * place, rows) for place, kind in enumerate(("<i4", "<i4", "<u4"))
        )
        return cls(starts, targets, highest, checks)  # type: ignore[arg-type]  # memmap's element type is not known


class TokenRows:
    """Whole tokenized rows, read one at a time; safe to read from several threads.

    Args:
        index, spool: what `RowWriter` made.
        damaged: called when a row is not what was written; it raises.
        held: kept alive as long as the rows are.
    """

    def __init__(self, index: RowIndex, spool: Spool, damaged: Callable[[str], NoReturn], held: object = None) -> None:
        self.index, self.spool, self._damaged, self._held = index, spool, damaged, held

    def __len__(self) -> int:
        return len(self.index)

    def read(self, row: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """A row's tokens, int32 (T,), and which are targets, bool (T,).

        Raises:
            QloradError: it is damaged.
        """
        start, end = int(self.index.starts[row]), int(self.index.starts[row + 1])
        try:
            content = self.spool.read(TOKEN_BYTES * start, TOKEN_BYTES * (end - start))
        except OSError as error:
            self._damaged(f"row {row + 1} ({error.strerror})")
        if zlib.crc32(content) != self.index.checks[row] or len(content) != TOKEN_BYTES * (end - start):
            self._damaged(f"row {row + 1}")
        tokens = np.frombuffer(content, "<i4", end - start)
        return tokens.astype(np.int32, copy=False), np.frombuffer(content, np.bool_, offset=4 * (end - start))


class RowWriter:
    """Takes rows one by one; holds twenty bytes of each, and the rest where its spool does."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self._starts, self._targets, self._highest, self._checks = array("q", [0]), array("i"), array("i"), array("I")

    def filled(self, rows: Iterable[Encoded]) -> Self:
        """With all of these rows."""
        for row in rows:
            self.add(row)
        return self

    def add(self, row: Encoded) -> None:
        """Append one row."""
        tokens = np.asarray(row.tokens, np.int32)
        content = tokens.astype("<i4", copy=False).tobytes() + row.supervised.tobytes()
        self.spool.append(content)
        self._starts.append(self._starts[-1] + len(tokens))
        self._targets.append(int(np.count_nonzero(row.supervised)))
        self._highest.append(int(tokens.max(initial=0)))
        self._checks.append(zlib.crc32(content))

    def index(self) -> RowIndex:
        """The index of all rows so far."""
        return RowIndex(
            np.frombuffer(self._starts, np.int64),
            np.frombuffer(self._targets, np.int32) if self._targets else np.empty(0, np.int32),
            np.frombuffer(self._highest, np.int32) if self._highest else np.empty(0, np.int32),
            np.frombuffer(self._checks, np.uint32) if self._checks else np.empty(0, np.uint32),
        )


def in_memory(rows: RowWriter) -> TokenRows:
    """The rows of a writer without a file."""

    def damaged(what: str) -> NoReturn:
        raise RowDamaged(what)

    return TokenRows(rows.index(), rows.spool, damaged)
