"""Tokenized rows of all kinds, made from a seed, and what is in those that were kept."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qlora_engine.training.encode import Encoded
from qlora_engine.training.spool import Spool
from qlora_engine.training.token_key import TokenKey
from qlora_engine.training.token_rows import RowWriter, TokenRows, in_memory

KEY = TokenKey("data", {"tokenizer.json": "hash"}, "text", {}, {"transformers": "5"})


def rows(count: int = 50, *, seed: int = 0) -> Iterator[Encoded]:
    """Rows of all kinds: empty, one token, all targets, masks with holes."""
    draw = np.random.default_rng(seed)
    for row in range(count):
        length = (0, 1, 2)[row] if row < 3 else int(draw.integers(1, 60))
        supervised = draw.random(length) < (1.0 if row % 3 else 0.4)
        supervised[:1] = False
        yield Encoded(draw.integers(0, 60_000, length).tolist(), supervised)


def memory(count: int = 50, *, seed: int = 0) -> TokenRows:
    return in_memory(RowWriter(Spool(None)).filled(rows(count, seed=seed)))


def content(found: TokenRows | None) -> list[tuple[list[int], list[bool]]]:
    assert found is not None
    return [(tokens.tolist(), mask.tolist()) for tokens, mask in map(found.read, range(len(found)))]
