"""Counting the tokens of a data file within a time limit: every row, or as many as fit, spread over the file."""

from __future__ import annotations

import itertools
import math
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from qlora_engine.job.datafiles import DataFile, parse_row
from qlora_engine.job.events import EventLog
from qlora_engine.job.spec import JobSpec
from qlora_engine.training.data import Document, tokenize
from qlora_engine.training.documents import Documents
from qlora_engine.training.token_source import TokenSource

CHUNK = 64  # rows between two looks at the clock
SURELY = 0.5  # of the time may be taken by what a few rows promise


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

    @classmethod
    def of(cls, rows: Documents) -> Tally:
        """The exact numbers of rows that are all known."""
        lost, kept = int(rows.cut.sum(dtype=np.int64)), int(rows.lengths.sum(dtype=np.int64))
        return cls(
            rows=len(rows),
            sampled=None,
            tokens=kept + lost,
            lost=lost,
            supervised=int(rows.targets.sum(dtype=np.int64)),
            truncated=int(np.count_nonzero(rows.cut)),
            nothing_to_learn=len(rows) - int(np.count_nonzero(rows.targets)),
            longest=int((rows.cut + rows.lengths).max(initial=0)),
            most_targets=int(rows.targets.max(initial=0)),
        )

    @property
    def lost_share(self) -> float:
        """Share of the tokens that are cut."""
        return self.lost / self.tokens if self.tokens else 0.0


def tally(file: DataFile, source: TokenSource, *, seconds: float) -> Tally:
    """Count the tokens of a data file: all of them if they are kept or can be made in some `seconds`, else a sample.

    Whatever is made in whole is kept for training.

    Raises:
        DataRejected: a row cannot be tokenized; with its line.
    """
    rows = source.kept(file, file.sha256)
    if rows is None and source.cache is not None and _guess(file, source) < SURELY * seconds:
        rows = source.rows(file, file.sha256, lambda: None, EventLog([]))
    if rows is not None:
        return Tally.of(Documents(rows, source.spec.max_seq_length))
    return sample(file, source.spec, source.tokenizer, seconds=seconds)


def _guess(file: DataFile, source: TokenSource) -> float:
    """Seconds that all rows would take, from some of them."""
    lines = _Lines.of(Path(file.path))
    chosen = list(itertools.islice(_spread(len(lines)), CHUNK))
    started = time.perf_counter()
    _tokenized(lines, chosen, file, source.spec, source.tokenizer)
    return (time.perf_counter() - started) * len(lines) / len(chosen)


def sample(file: DataFile, spec: JobSpec, tokenizer: TokenizerWrapper, *, seconds: float) -> Tally:
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
