"""Arrays in a safetensors file, written in one pass from memory that MLX does not touch.

MLX writes such files itself, but asks for its own thread and for a second reading where the file's hash is wanted; the
safetensors package holds all of them as bytes first. The format is
https://huggingface.co/docs/safetensors/index#format: the length of a JSON header, the header, the numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np

from qlora_engine.job import durable

KINDS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
ALIGNED = 8  # bytes that the header's length is a multiple of

Arrays = Mapping[str, np.ndarray]


def on_host(arrays: Mapping[str, mx.array]) -> dict[str, np.ndarray]:
    """Copies that stay as they are while training goes on; all are evaluated at once."""
    mx.eval(list(arrays.values()))
    return {name: np.array(array) for name, array in arrays.items()}


def write(path: Path, arrays: Arrays, metadata: Mapping[str, str] | None = None) -> str:
    """Write a new file and force it to the disk; its SHA-256.

    The same arrays give the same bytes: they lie in the order of their names, those of wide numbers first.

    Args:
        arrays: of numpy's plain types, little-endian.

    Raises:
        OSError: the disk is full or read-only; the file may be there in part.
    """
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        start, end = end, end + arrays[name].nbytes
        kind = KINDS[arrays[name].dtype.name]
        header[name] = {"dtype": kind, "shape": list(arrays[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNED)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for content in (len(text).to_bytes(8, "little"), text):
            digest.update(content)
            file.write(content)
        for name in names:
            numbers = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data
            digest.update(numbers)
            file.write(numbers)
        file.flush()
        durable.sync_file(file.fileno())
    return digest.hexdigest()
