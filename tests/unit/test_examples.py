"""Every example is a job as it stands, and its data is what its generator writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qlora_engine.job import datafiles
from qlora_engine.job.jobfile import read_job_file
from qlora_engine.job.members import drafts, sweep_of
from qlora_engine.job.validate import validate
from support.service import ROOT

EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/job.yaml"))
# sql-assistant has tests of its own, which know its tables.
SMALL = [path for path in EXAMPLES if path.name != "sql-assistant"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_its_rows_can_be_trained_on_and_it_says_how_to_begin(example: Path) -> None:
    """An example that fails teaches that the program does."""
    text = read_job_file(example / "job.yaml")[1]
    sweep = sweep_of(text)
    spec = validate(drafts(text, sweep)[0].text if sweep is not None else text)
    found = datafiles.check_folder(example / spec.data, spec)
    assert found["train"].rows >= 100
    assert found["valid"].rows >= 20
    assert spec.name == example.name
    assert f"qlora submit examples/{example.name}" in (example / "README.md").read_text()


@pytest.mark.parametrize("example", SMALL, ids=lambda path: path.name)
def test_its_generator_writes_what_lies_there(example: Path, tmp_path: Path) -> None:
    """Whoever changes the generator must be able to see what has changed."""
    subprocess.run([sys.executable, example / "generate.py", "--out", tmp_path], check=True, timeout=60)
    for split in ("train", "valid"):
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (example / "data" / f"{split}.jsonl").read_bytes()


@pytest.mark.parametrize("example", SMALL, ids=lambda path: path.name)
def test_no_held_out_row_is_trained_on(example: Path) -> None:
    """The validation loss would say how well rows are remembered."""
    train, valid = ((example / "data" / f"{split}.jsonl").read_text().splitlines() for split in ("train", "valid"))
    assert not set(valid) & set(train)
    assert len(set(train)) == len(train)
