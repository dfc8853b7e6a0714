"""Whole rows seen through a window: what is known of each without reading it is what reading it shows."""

from __future__ import annotations

import numpy as np
import pytest

from qlora_engine.training.documents import Documents, lengths_of
from qlora_engine.training.encode import Encoded
from qlora_engine.training.spool import Spool
from qlora_engine.training.token_rows import RowWriter, in_memory
from support.token_rows import content, memory


@pytest.mark.parametrize("longest", [8, 20, 59, 60, 1000])
def test_every_window_cuts_the_same_rows(longest: int) -> None:
    """Changing max_seq_length must neither tokenize anew nor train on anything else."""
    documents = Documents(memory(), longest)
    assert documents.lengths.tolist() == [len(document) for document in documents]
    assert list(lengths_of(documents)) == lengths_of(list(documents)) == documents.lengths.tolist()
    assert {type(length) for length in lengths_of(documents)} == {int}  # NumPy's are no JSON
    assert documents.targets.tolist() == [document.targets for document in documents]
    assert documents.cut.tolist() == [document.cut for document in documents]
    assert not any(document.supervised[:1].any() for document in documents)
    for document, (tokens, mask) in zip(documents, content(memory()), strict=True):
        assert document.tokens.tolist() == tokens[:longest]
        assert document.supervised.tolist() == mask[:longest]
        assert document.cut == max(0, len(tokens) - longest)
        assert document.tokens.dtype == np.int32


def test_documents_are_a_sequence() -> None:
    """The loop and the tests use lists of documents in the same places."""
    documents = Documents(memory(10), 100)
    assert len(documents) == 10
    assert documents[-1].tokens.tolist() == documents[np.int64(9)].tokens.tolist()
    assert [len(document) for document in documents[2:4]] == documents.lengths[2:4].tolist()
    with pytest.raises(IndexError):
        documents[10]


def test_the_row_with_an_unknown_token_is_named_as_it_is_cut() -> None:
    """A token that the window cuts away is never trained on."""
    made = RowWriter(Spool(None)).filled(
        Encoded(tokens, np.zeros(len(tokens), np.bool_)) for tokens in ([5, 1], [1, 2, 3, 99], [9, 7])
    )
    assert Documents(in_memory(made), 100).first_over(8) == (1, 99)
    assert Documents(in_memory(made), 3).first_over(8) == (2, 9)
    assert Documents(in_memory(made), 3).first_over(9) is None
