"""A row of data as training sees it: tokens, cut to the window, and which of them are targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper
from numpy.typing import NDArray

from qlora_engine.job.datafiles import DataFormat, read_rows
from qlora_engine.job.spec import JobSpec
from qlora_engine.training.encode import Row, encode_rows

ROWS_A_BEAT = 1000


@dataclass(frozen=True)
class Document:
    """One row of data.

    Attributes:
        tokens: int32 (T,).
        supervised: bool (T,), True where the token is a target; never at 0, which nothing predicts.
        cut: tokens that did not fit into max_seq_length.
    """

    tokens: NDArray[np.int32]
    supervised: NDArray[np.bool_]
    cut: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def targets(self) -> int:
        """How many tokens are learned."""
        return int(self.supervised.sum())


def read_documents(
    path: Path, kind: DataFormat, spec: JobSpec, tokenizer: TokenizerWrapper, beat: Callable[[], None] = lambda: None
) -> list[Document]:
    """Tokenize every row of a data file into memory; `beat` is called now and then.

    Raises:
        DataRejected: the tokenizer cannot render a row; with its line.
    """
    return tokenize(beating(read_rows(path), beat), str(path), kind, spec, tokenizer)


def beating(rows: Iterable[Row], beat: Callable[[], None]) -> Iterator[Row]:
    """The same rows, with a call of `beat` now and then."""
    for count, row in enumerate(rows):
        if count % ROWS_A_BEAT == 0:
            beat()
        yield row


def tokenize(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    source: str,
    kind: DataFormat,
    spec: JobSpec,
    tokenizer: TokenizerWrapper,
) -> list[Document]:
    """Tokenize numbered rows; `source` is what an error calls them."""
    return [
        cut_to(np.asarray(row.tokens, np.int32), row.supervised, spec.max_seq_length)
        for row in encode_rows(rows, source, kind, spec, tokenizer)
    ]


def cut_to(tokens: NDArray[np.int32], supervised: NDArray[np.bool_], longest: int) -> Document:
    """A whole row as a document of at most `longest` tokens, which holds no more memory than that."""
    if len(tokens) <= longest:
        return Document(tokens, supervised)
    return Document(tokens[:longest].copy(), supervised[:longest].copy(), len(tokens) - longest)
