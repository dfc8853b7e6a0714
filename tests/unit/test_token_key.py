"""Tokens are found again by all that decides them, and by nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qlora_engine.job.datafiles import DataFile, DataFormat
from qlora_engine.job.spec import JobSpec
from qlora_engine.training.encode import DECIDES
from qlora_engine.training.token_key import TokenKey, tokenizer_files
from support.token_rows import KEY


def model_folder(folder: Path) -> Path:
    (folder / "additional_chat_templates").mkdir(parents=True)
    for name in ("tokenizer.json", "chat_template.jinja", "config.json", "additional_chat_templates/tools.jinja"):
        (folder / name).write_text(name)
    (folder / "model.safetensors").write_text("weights")
    return folder


def key_of(model: Path, sha256: str = "1", kind: DataFormat = DataFormat.CHAT, **keys: object) -> str:
    file = DataFile(path="/d/train.jsonl", rows=1, bytes=1, sha256=sha256, format=kind)
    return TokenKey.of(file, sha256, JobSpec.model_validate(keys), tokenizer_files(model)).name


@pytest.mark.parametrize(
    "changed", ["tokenizer.json", "chat_template.jinja", "config.json", "additional_chat_templates/tools.jinja"]
)
def test_another_tokenizer_has_another_key(tmp_path: Path, changed: str) -> None:
    """Tokens of one tokenizer mean something else to another."""
    model = model_folder(tmp_path / "model")
    before = key_of(model)
    (model / changed).write_text("other")
    assert key_of(model) != before


def test_what_decides_no_token_does_not_change_the_key(tmp_path: Path) -> None:
    """Another window, rate or set of weights must start as fast."""
    model = model_folder(tmp_path / "model")
    before = key_of(model)
    (model / "model.safetensors").write_text("other weights")
    assert key_of(model, max_seq_length=99, learning_rate=0.5, seed=3) == before
    assert key_of(model_folder(tmp_path / "copy")) == before


def test_every_key_that_decides_tokens_changes_the_key(tmp_path: Path) -> None:
    """With the prompts masked or other columns read, other tokens are learned."""
    model = model_folder(tmp_path / "model")
    values = {name: True if name == "mask_prompt" else "other" for name in DECIDES}
    assert {name for name in JobSpec.model_fields if name.endswith("_feature")} < set(DECIDES)
    found = {key_of(model), key_of(model, "2"), key_of(model, kind=DataFormat.TEXT)}
    found |= {key_of(model, **{name: value}) for name, value in values.items()}
    found |= {replace(KEY, encoding=KEY.encoding + 1).name, replace(KEY, versions={"transformers": "6"}).name, KEY.name}
    assert len(found) == 3 + len(DECIDES) + 3
