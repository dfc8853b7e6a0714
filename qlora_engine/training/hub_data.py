"""Data sets of the hub, by name or by mlx_lm's `hf_dataset` section; needs the package `datasets`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from qlora_engine.job.datafiles import SPLITS, Split, check_row, format_of
from qlora_engine.job.errors import DataRejected
from qlora_engine.job.spec import JobSpec
from qlora_engine.training.data import Document, tokenize

# mlx_lm's defaults for `hf_dataset`; a test split has none.
DEFAULT_SPLITS: dict[Split, str | None] = {"train": "train[:80%]", "valid": "train[-10%:]", "test": None}
FEATURES = ("prompt_feature", "completion_feature", "chat_feature", "text_feature")


def read_hub_documents(spec: JobSpec, tokenizer: TokenizerWrapper) -> dict[Split, list[Document]]:
    """Tokenize the splits of the job's hub data set, or of each of its `hf_dataset` entries in order.

    Raises:
        DataRejected: it does not exist, cannot be fetched, or has no training rows.
    """
    documents: dict[Split, list[Document]] = {}
    sources = spec.hf_dataset if isinstance(spec.hf_dataset, list) else [spec.hf_dataset]
    for source in sources:
        section = source or {}
        reading = spec.model_copy(update={key: section[key] for key in FEATURES if key in section})
        name = str(section.get("path", spec.data))
        for split in SPLITS:
            if split == "test" and not spec.test:
                continue
            rows = _load(name, split, section if source else None)
            if rows:
                documents.setdefault(split, []).extend(_tokenize(rows, f"{name} ({split})", reading, tokenizer))
    if not documents.get("train"):
        raise DataRejected("The data set has no training rows.", where=f"data: {spec.data}", remedy="Choose another.")
    return documents


def _load(name: str, split: Split, section: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    from datasets import load_dataset  # noqa: PLC0415  # an optional package, heavy to import

    try:
        if section is None:
            found = load_dataset(name)
            return list(found[split]) if split in found else []
        chosen = section.get(f"{split}_split", DEFAULT_SPLITS[split])
        return list(load_dataset(name, split=chosen, **section.get("config", {}))) if chosen else []
    except Exception as error:
        raise DataRejected(
            f"The data set `{name}` cannot be loaded: {type(error).__name__}: {error}",
            where=f"data: {name}",
            remedy="Check the name, its splits and the network.",
        ) from error


def _tokenize(rows: list[dict[str, Any]], source: str, spec: JobSpec, tokenizer: TokenizerWrapper) -> list[Document]:
    kind = format_of(rows[0], spec, Path(source), 1)
    numbered = list(enumerate(rows, 1))
    for number, row in numbered:
        check_row(row, kind, spec, Path(source), number)
    return tokenize(numbered, source, kind, spec, tokenizer)
