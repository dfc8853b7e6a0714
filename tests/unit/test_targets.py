"""A batch's inputs and targets: what a position must predict, and what is filling."""

from __future__ import annotations

import numpy as np
import pytest

from qlora_engine.job.preflight.backends import Name
from qlora_engine.job.preflight.batch import GRID
from qlora_engine.training.data import Document
from qlora_engine.training.targets import Targets


def document(*tokens: int, prompt: int = 1) -> Document:
    """A row whose first tokens are no targets."""
    supervised = np.arange(len(tokens)) >= prompt
    return Document(np.array(tokens, np.int32), supervised)


def test_targets_are_the_next_tokens_of_supervised_columns() -> None:
    """Off by one, a model learns to repeat its input."""
    tokens = np.array([[1, 2, 3, 0], [4, 5, 6, 7]])
    supervised = np.array([[True, False, True, False], [False, True, False, True]])
    found = Targets.of(tokens, supervised)
    assert found.inputs.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert found.count == 3  # column 0 is no target: nothing predicts it
    assert found.rows[:3].tolist() == [1, 3, 5]
    assert found.tokens[:3].tolist() == [3, 5, 7]
    assert len(found.rows) == len(found.tokens) == 32
    assert set(found.rows[3:].tolist()) == {1}  # filling
    assert found.shape == (2, 3, 32, 0)


def test_joined_documents_predict_their_own_tokens_alone() -> None:
    """The last token of one may not learn the first of the next."""
    found = Targets.joined([[document(1, 2, 3), document(4, 5, 6, 7, prompt=2)], [document(8, 9)]], width=6)
    assert found.inputs.tolist() == [[1, 2, 4, 5, 6, 0], [8, 0, 0, 0, 0, 0]]
    assert found.segments is not None
    assert found.segments.tolist() == [[1, 1, 2, 2, 2, 0], [1, 0, 0, 0, 0, 0]]
    assert found.rows[: found.count].tolist() == [0, 1, 3, 4, 6]
    assert found.tokens[: found.count].tolist() == [2, 3, 6, 7, 9]
    assert (found.positions, found.filled, found.highest) == (12, 6, 9)


def test_rows_of_one_document_need_no_segments() -> None:
    """A causal mask has kernels that an arbitrary one has not."""
    found = Targets.joined([[document(1, 2, 3)], [document(4, 5)]], width=8)
    assert found.segments is None
    assert found.inputs.tolist() == [[1, 2, *[0] * 6], [4, *[0] * 7]]
    assert found.filled == 3


@pytest.mark.parametrize("length", [0, 1])
def test_rows_of_hardly_a_token_are_padded_too(length: int) -> None:
    """A row too short to have a target is harmless, not a crash."""
    found = Targets.joined([[document(*[5] * length)]], width=8)
    assert (found.count, found.filled) == (0, 0)
    assert found.inputs.tolist() == [[0] * 8]


def test_numbers_of_targets_are_few_and_little_waste() -> None:
    """Each filling row is projected for nothing."""
    sizes = {count: GRID["cpu"].targets(count, 1 << 20) for count in range(1, 20_000)}
    assert all(count <= size < max(33, 1.125 * count + 1) + 31 * (count < 256) for count, size in sizes.items())
    assert all(size % 32 == 0 for size in sizes.values())
    assert len(set(sizes.values())) < 80
    assert GRID["cpu"].targets(0, 8) == 32


@pytest.mark.parametrize("backend", ["cuda", "metal"])
def test_a_gpu_compiles_at_most_four_numbers_of_targets_for_a_shape(backend: Name) -> None:
    """Each is compiled anew and never forgotten: rows of one width differed in little else."""
    sizes = {GRID[backend].targets(count, 704) for count in range(705)}
    assert sizes == {176, 352, 528, 704}
    assert GRID[backend].targets(704, 704) == 704
    rows = [document(*range(1, 300)), document(*range(1, 90))]
    found = Targets.joined([rows], 416, GRID[backend])
    assert (found.rows.size, found.count) == (416, 386)
