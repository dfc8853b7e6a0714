"""Counting a data file's tokens: every row once, or a sample that says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlx_lm.utils import load_tokenizer

from qlora_engine.job.datafiles import check_folder
from qlora_engine.job.spec import JobSpec
from qlora_engine.training.data import read_documents
from qlora_engine.training.tally import _spread, sample, tally
from qlora_engine.training.token_cache import TokenCache
from qlora_engine.training.token_source import TokenSource
from support.tiny import make_tokenizer

SPEC = JobSpec(max_seq_length=32, batch_size=2)


def rows_in(folder: Path, lengths: list[int]) -> Path:
    lines = [json.dumps({"text": "q" * length}) for length in lengths]
    (folder / "train.jsonl").write_text("\n\n".join(lines))
    return folder


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 100, 987, 4096])
def test_every_row_is_looked_at_once(rows: int) -> None:
    """A row counted twice is another one missed."""
    assert sorted(_spread(rows)) == list(range(rows))


def test_every_beginning_is_spread_over_the_file() -> None:
    """Files are often sorted; their first rows say little of their last."""
    first = sorted(list(_spread(10_000))[:100])
    gaps = [later - earlier for earlier, later in zip([0, *first], [*first, 10_000], strict=True)]
    assert max(gaps) < 300


def test_the_counts_are_those_of_training(tmp_path: Path) -> None:
    """What admission says of a job and what its training finds must be one truth."""
    make_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    file = check_folder(rows_in(tmp_path, [3, 50, 20, 31, 32, 7]), SPEC)["train"]
    documents = read_documents(Path(file.path), file.format, SPEC, tokenizer)
    found = sample(file, SPEC, tokenizer, seconds=60)
    assert found.rows == 6
    assert found.sampled is None
    assert found.tokens == sum(len(row) + row.cut for row in documents) == 149
    assert found.lost == sum(row.cut for row in documents) == 20
    assert found.truncated == 2
    assert found.supervised == sum(row.targets for row in documents)
    assert found.longest == 51


def test_all_rows_are_kept_or_a_sample_is_taken(tmp_path: Path) -> None:
    """Admission may not take longer for a cache, and what it counts there must be what it counts without one."""
    make_tokenizer(tmp_path)
    file = check_folder(rows_in(tmp_path, [3, 50, 20, 31, 32, 7]), SPEC)["train"]
    tokenizer, cache = load_tokenizer(tmp_path), TokenCache(tmp_path / "tokens", 10**9)
    source = TokenSource(SPEC, tokenizer, tmp_path, cache)
    plain = sample(file, SPEC, tokenizer, seconds=60)
    assert tally(file, source, seconds=0) == plain  # six rows are a sample at once
    assert source.kept(file, file.sha256) is None
    assert tally(file, TokenSource(SPEC, tokenizer, tmp_path, None), seconds=60) == plain
    assert tally(file, source, seconds=60) == plain
    assert source.kept(file, file.sha256) is not None
    (tmp_path / "train.jsonl").write_text("not looked at again")
    assert tally(file, source, seconds=0) == plain


def test_out_of_time_a_sample_stands_for_the_rest(tmp_path: Path) -> None:
    """Admission of a million rows must not take minutes, and its numbers must say that they are estimates."""
    make_tokenizer(tmp_path)
    lengths = [10] * 500 + [20] * 500 + [200]
    file = check_folder(rows_in(tmp_path, lengths), SPEC)["train"]
    found = sample(file, SPEC, load_tokenizer(tmp_path), seconds=0)
    assert found.rows == 1001
    assert found.sampled is not None
    assert found.sampled < 200
    assert found.tokens == pytest.approx(16 * 1001, rel=0.1)
    assert found.longest == 201  # one row among a thousand, found by its bytes
