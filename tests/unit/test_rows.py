"""What is read is checked before anything is trained on it."""

from __future__ import annotations

import numpy as np
import pytest

from qlora_engine.job.errors import DataRejected
from qlora_engine.training.data import Document
from qlora_engine.training.rows import check_tokens


def document(*tokens: int) -> Document:
    return Document(np.array(tokens, np.int32), np.ones(len(tokens), bool))


def test_a_token_beyond_the_vocabulary_is_named_with_its_row() -> None:
    """MLX reads past the end of the embedding without a word, and the validation loss is anything."""
    check_tokens([document(0, 63), document()], "valid.jsonl", 64)
    with pytest.raises(DataRejected, match=r"Row 2 has token 64, but the model knows 64 tokens"):
        check_tokens([document(1), document(2, 64)], "valid.jsonl", 64)
