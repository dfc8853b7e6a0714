"""Counting the tokens of a data file within a time limit: every row, or as many as fit, spread over the file."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_lm.tokenizer_utils import TokenizerWrapper

from qlora_engine.job.datafiles import DataFile, parse_row
from qlora_engine.job.spec import JobSpec
from qlora_engine.training.data import Document, tokenize

CHUNK = 64  # rows between two looks at the clock


@dataclass(frozen=True)
class Tally:
    """What a file's rows come to; sums are estimated from the rows looked at when those are not all.

    Attributes:
        rows: in the file.
        sampled: rows looked at, or None for all.
        tokens: before rows are cut; `lost` of them are.
        supervised: tokens that are learned.
        truncated: rows that are cut.
        nothing_to_learn: rows without a target.
        longest: tokens of the longest row.
        most_targets: of one row.
    """

    rows: int
    sampled: int | None
    tokens: int
    lost: int
    supervised: int
    truncated: int
    nothing_to_learn: int
    longest: int
    most_targets: int

    @property
    def lost_share(self) -> float:
        """Share of the tokens that are cut."""
        return self.lost / self.tokens if self.tokens else 0.0


def tally(file: DataFile, spec: JobSpec, tokenizer: TokenizerWrapper, *, seconds: float) -> Tally:
    """Tokenize a data file's rows, for at most some `seconds`.

    The longest rows by their bytes come first, since they decide how much memory is needed; the rest in an order
    whose every beginning is spread evenly over the file.

    Raises:
        DataRejected: a row cannot be tokenized; with its line.
    """
    path, end = Path(file.path), time.monotonic() + seconds
    lines = _Lines.of(path)
    longest = lines.longest(max(spec.batch_size, CHUNK))
    first = [_Counted.of(document) for document in _tokenized(lines, longest, file, spec, tokenizer)]
    spread = list(_spread(len(lines)))
    counted: list[_Counted] = []
    for start in range(0, len(spread), CHUNK):
        if counted and time.monotonic() >= end:
            break
        chosen = spread[start : start + CHUNK]
        counted += [_Counted.of(document) for document in _tokenized(lines, chosen, file, spec, tokenizer)]
    return _summed(counted, first, len(lines))


@dataclass(frozen=True)
class _Counted:
    tokens: int
    cut: int
    targets: int

    @classmethod
    def of(cls, document: Document) -> _Counted:
        return cls(len(document) + document.cut, document.cut, document.targets)


def _summed(counted: Sequence[_Counted], longest: Sequence[_Counted], rows: int) -> Tally:
    share = rows / len(counted) if counted else 1.0

    def whole(number: int) -> int:
        return round(share * number)

    return Tally(
        rows=rows,
        sampled=len(counted) if len(counted) < rows else None,
        tokens=whole(sum(row.tokens for row in counted)),
        lost=whole(sum(row.cut for row in counted)),
        supervised=whole(sum(row.targets for row in counted)),
        truncated=whole(sum(row.cut > 0 for row in counted)),
        nothing_to_learn=whole(sum(row.targets == 0 for row in counted)),
        longest=max((row.tokens for row in (*longest, *counted)), default=0),
        most_targets=max((row.targets for row in (*longest, *counted)), default=0),
    )


class _Lines:
    """Where the rows of a file begin, so that any of them can be read."""

    def __init__(self, path: Path, numbers: array[int], offsets: array[int], sizes: array[int]) -> None:
        self.path, self._numbers, self._offsets, self._sizes = path, numbers, offsets, sizes

    @classmethod
    def of(cls, path: Path) -> _Lines:
        numbers, offsets, sizes, offset = array("q"), array("q"), array("q"), 0
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    numbers.append(number)
                    offsets.append(offset)
                    sizes.append(len(raw))
                offset += len(raw)
        return cls(path, numbers, offsets, sizes)

    def __len__(self) -> int:
        return len(self._numbers)

    def longest(self, count: int) -> list[int]:
        """The rows with most bytes."""
        return sorted(range(len(self)), key=lambda row: -self._sizes[row])[:count]

    def read(self, rows: Sequence[int]) -> Iterator[tuple[int, dict[str, object]]]:
        """Rows with their line numbers."""
        with self.path.open("rb") as file:
            for row in rows:
                file.seek(self._offsets[row])
                yield self._numbers[row], parse_row(file.read(self._sizes[row]), self.path, self._numbers[row])


def _tokenized(
    lines: _Lines, rows: Sequence[int], file: DataFile, spec: JobSpec, tokenizer: TokenizerWrapper
) -> list[Document]:
    return tokenize(lines.read(rows), file.path, file.format, spec, tokenizer)


def _spread(rows: int) -> Iterator[int]:
    """Every row once, in steps of the golden section of their number: each beginning is spread over all of them."""
    step = max(1, round(rows * 0.6180339887))
    while math.gcd(step, rows) > 1:
        step += 1
    return (index * step % rows for index in range(rows))
