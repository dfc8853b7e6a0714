"""What decides the tokens of a data file, and the key made of it under which they are kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from qlora_engine.job.datafiles import DataFile, digest
from qlora_engine.job.spec import JobSpec
from qlora_engine.training.encode import DECIDES, ENCODING

LIBRARIES = ("mlx-lm", "transformers", "tokenizers", "sentencepiece", "tiktoken", "jinja2")
# Of a model's folder all files count but these, which no tokenizer reads.
WEIGHTS = frozenset({".safetensors", ".gguf", ".npz", ".bin", ".pt", ".pth", ".h5", ".onnx", ".msgpack"})
OTHER = frozenset({".md", ".png", ".jpg", ".pdf"})
NAMES = frozenset({"model.safetensors.index.json", "generation_config.json", ".gitattributes", ".DS_Store"})
FOLDERS = ("additional_chat_templates",)


@dataclass(frozen=True)
class TokenKey:
    """Everything that decides a data file's tokens; the window does not, since whole rows are kept.

    Attributes:
        data: SHA-256 of the file.
        tokenizer: SHA-256 of each file that the tokenizer may read, by name.
    """

    data: str
    tokenizer: dict[str, str]
    format: str
    keys: dict[str, Any]
    versions: dict[str, str | None]
    encoding: int = ENCODING

    @classmethod
    def of(cls, file: DataFile, sha256: str, spec: JobSpec, tokenizer: dict[str, str]) -> Self:
        """The key of a file's tokens; `tokenizer` is what `tokenizer_files` gives."""
        keys = spec.model_dump(mode="json", include=set(DECIDES))
        return cls(sha256, tokenizer, str(file.format), keys, {name: _version(name) for name in LIBRARIES})

    @cached_property
    def name(self) -> str:
        """SHA-256 of all, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """For the key and for whoever wonders what it was made of."""
        return {
            "data": self.data,
            "tokenizer": self.tokenizer,
            "format": self.format,
            "keys": self.keys,
            "versions": self.versions,
            "encoding": self.encoding,
        }


def tokenizer_files(model: Path) -> dict[str, str]:
    """SHA-256 of every file of a model's folder that may decide tokens: templates, vocabularies, configs.

    Raises:
        DataRejected: one cannot be read.
    """
    places = [model, *(model / folder for folder in FOLDERS)]
    files = [file for place in places if place.is_dir() for file in sorted(place.iterdir()) if file.is_file()]
    return {str(file.relative_to(model)): digest(file) for file in files if _counts(file)}


def _counts(file: Path) -> bool:
    return file.suffix.lower() not in WEIGHTS | OTHER and file.name not in NAMES


@cache  # reading it takes milliseconds
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
