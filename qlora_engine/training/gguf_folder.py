"""Writes the MLX model folder of a GGUF file: config, weights, tokenizer, and where it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlx.core as mx

from qlora_engine import __version__
from qlora_engine.job import durable
from qlora_engine.job.errors import ModelNotAdded
from qlora_engine.job.model_store import check_space
from qlora_engine.job.models import PROVENANCE
from qlora_engine.job.unforeseen import said_by
from qlora_engine.training.gguf import Gguf, read_gguf
from qlora_engine.training.gguf_config import build_config
from qlora_engine.training.gguf_llama import ROPE_FACTORS, Part, check_supported, parts, read_shape
from qlora_engine.training.gguf_tokenizer import TokenizerFiles, build_tokenizer
from qlora_engine.training.gguf_weights import read_floats, read_part

CONVERSION = 1  # raised when the same file would become another folder

Progress = Callable[[dict[str, Any]], None]  # Any: JSON


def write_folder(source: Path, folder: Path, *, licence: str | None, progress: Progress) -> None:
    """Convert the GGUF file `source` into the new folder `folder`, which `mlx_lm.load` takes as it is.

    Args:
        licence: of the model, where the file does not name one.
        progress: is told of the stages `read` and `write`.

    Raises:
        ModelRejected: the file cannot be read.
        ConversionRefused: it holds something that MLX cannot take over exactly, or is damaged.
        ModelNotAdded: the disk has no room.
        OSError: the folder cannot be written.
    """
    progress({"stage": "read", "file": source.name, "bytes": source.stat().st_size})
    gguf = read_gguf(source)
    check_supported(gguf)
    shape = read_shape(gguf)
    modules = parts(gguf, shape)
    tokenizer = build_tokenizer(gguf, shape.vocabulary)
    rope_factors = None
    with source.open("rb") as file:
        if ROPE_FACTORS in gguf.tensors:
            rope_factors = read_floats(gguf, file, gguf.tensors[ROPE_FACTORS])
    config = build_config(gguf, shape, modules, rope_factors, tokenizer.end_tokens)

    need = model_bytes(source.stat().st_size)
    check_space(folder.parent, need)
    progress({"stage": "write", "tensors": len(modules), "bytes": need})
    folder.mkdir()
    _write_weights(gguf, modules, folder / "model.safetensors")
    durable.write_json(folder / "config.json", config)
    durable.write_json(folder / "generation_config.json", _generation(config))
    _write_tokenizer(tokenizer, folder)
    durable.write_json(folder / PROVENANCE, _provenance(gguf, licence))


def model_bytes(gguf_bytes: int) -> int:
    """Room for the model of a GGUF file of this size: Q4_0 grows most, by 2 bytes in 18."""
    return gguf_bytes * 20 // 18 + 32 * 2**20


def _write_weights(gguf: Gguf, modules: list[Part], path: Path) -> None:
    weights: dict[str, mx.array] = {}
    with gguf.path.open("rb") as file:
        for part in modules:
            for name, array in read_part(gguf, file, part).items():
                weights[name] = mx.array(array)
    try:
        mx.save_safetensors(str(path), weights, {"format": "mlx"})
    except RuntimeError as error:
        raise ModelNotAdded(
            f"The weights cannot be written: {said_by(error)}.",
            where=str(path),
            remedy="Check that the disk has room, then try again.",
        ) from error


def _write_tokenizer(tokenizer: TokenizerFiles, folder: Path) -> None:
    durable.write_text(folder / "tokenizer.json", tokenizer.tokenizer)
    durable.write_json(folder / "tokenizer_config.json", tokenizer.config)
    if tokenizer.chat_template:
        durable.write_text(folder / "chat_template.jinja", tokenizer.chat_template)


def _generation(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("bos_token_id", "eos_token_id") if key in config}


def _provenance(gguf: Gguf, licence: str | None) -> dict[str, Any]:
    with gguf.path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    named = gguf.metadata.get("general.license")
    model = gguf.metadata.get("general.name")
    return {
        "source": gguf.path.name,
        "sha256": sha256,
        "conversion": CONVERSION,
        "qlorad": __version__,
        "model": model if isinstance(model, str) else None,
        "licence": licence or (named if isinstance(named, str) else None),
        "converted": datetime.now(UTC).isoformat(timespec="seconds"),
    }
