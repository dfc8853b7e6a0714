"""Data sets of the hub, by name or by mlx_lm's `hf_dataset` section; needs the package `datasets`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from qlora_engine.job.datafiles import SPLITS, DataFormat, Split, check_row, format_of
from qlora_engine.job.errors import DataRejected
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.unforeseen import said_by
from qlora_engine.training.documents import Documents
from qlora_engine.training.encode import Encoded, encode_rows
from qlora_engine.training.spool import Spool
from qlora_engine.training.token_rows import RowWriter, in_memory

# mlx_lm's defaults for `hf_dataset`; a test split has none.
DEFAULT_SPLITS: dict[Split, str | None] = {"train": "train[:80%]", "valid": "train[-10%:]", "test": None}
FEATURES = ("prompt_feature", "completion_feature", "chat_feature", "text_feature")


def read_hub_documents(spec: JobSpec, tokenizer: TokenizerWrapper) -> tuple[dict[Split, Documents], DataFormat]:
    """Tokenize the splits of the job's hub data set, or of each of its `hf_dataset` entries in order.

    Returns:
        The documents by split, and the format of the first training row.

    Raises:
        DataRejected: it does not exist, cannot be fetched, or has no training rows.
    """
    found: dict[Split, RowWriter] = {}
    formats: dict[Split, DataFormat] = {}
    for section, reading, name in _sources(spec):
        for split in SPLITS:
            if split == "test" and not spec.test:
                continue
            rows = list(_load(name, split, section))
            if rows:
                into = found.setdefault(split, RowWriter(Spool(None)))
                source = f"{name} ({split})"
                kind = format_of(rows[0], reading, Path(source), 1)
                formats.setdefault(split, kind)
                into.filled(_encoded(rows, source, kind, reading, tokenizer))
    if "train" not in found:
        raise DataRejected("The data set has no training rows.", where=f"data: {spec.data}", remedy="Choose another.")
    documents = {split: Documents(in_memory(rows), spec.max_seq_length) for split, rows in found.items()}
    return documents, formats["train"]


def read_hub_rows(spec: JobSpec, count: int) -> Iterator[tuple[Mapping[str, Any], DataFormat, JobSpec]]:
    """The first validation rows, or training rows without any, with their format and the job that names their features.

    Raises:
        DataRejected: the data set cannot be loaded.
    """
    sources = _sources(spec)
    for split in ("valid", "train"):
        found = 0
        for section, reading, name in sources:
            for number, row in enumerate(itertools.islice(_load(name, split, section), count - found), 1):
                found += 1
                yield row, format_of(row, reading, Path(name), number), reading
        if found:
            return


def _sources(spec: JobSpec) -> list[tuple[Mapping[str, Any] | None, JobSpec, str]]:
    """Each data set: its `hf_dataset` section, the job with the section's feature names, and the data set's name."""
    sections = spec.hf_dataset if isinstance(spec.hf_dataset, list) else [spec.hf_dataset]
    return [
        (
            section or None,
            spec.model_copy(update={key: section[key] for key in FEATURES if key in section}) if section else spec,
            str((section or {}).get("path", spec.data)),
        )
        for section in sections
    ]


def _load(name: str, split: Split, section: Mapping[str, Any] | None) -> Iterable[dict[str, Any]]:
    from datasets import load_dataset  # noqa: PLC0415  # an optional package, heavy to import

    try:
        if section is None:
            found = load_dataset(name)
            rows: Iterable[dict[str, Any]] = found.get(split, [])
            return rows
        chosen = section.get(f"{split}_split", DEFAULT_SPLITS[split])
        rows = load_dataset(name, split=chosen, **section.get("config", {})) if chosen else []
    except Exception as error:
        raise DataRejected(
            f"The data set `{name}` cannot be loaded: {said_by(error)}.",
            where=f"data: {name}",
            remedy="Check the name, its splits and the network.",
        ) from error
    return rows


def _encoded(
    rows: list[dict[str, Any]], source: str, kind: DataFormat, spec: JobSpec, tokenizer: TokenizerWrapper
) -> Iterator[Encoded]:
    numbered = list(enumerate(rows, 1))
    for number, row in numbered:
        check_row(row, kind, spec, Path(source), number)
    return encode_rows(numbered, source, kind, spec, tokenizer)
