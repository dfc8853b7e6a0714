"""Reads the header of a GGUF file: its metadata and where its tensors lie.

A file may be damaged or hostile, so every count and length is checked against the file's size and against
fixed limits before anything of that size is made. The file is only read, while `mx.load` opens a GGUF for
writing, so that it fails on a read-only one, and takes no notice of `general.alignment`. Format: the GGUF
specification of the ggml project, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qlora_engine.job.errors import ConversionRefused, ModelRejected

Scalar = str | int | float | bool
Value = Scalar | list[Scalar]

MAX_HEADER_BYTES = 256 * 2**20  # the largest vocabularies need some 15 MB
MAX_ARRAY_ITEMS = 4 * 2**20  # the largest vocabularies hold some 300,000 tokens
MAX_TENSORS = 65_536
MAX_KEYS = 65_536
MAX_NAME_BYTES = 65_535
MAX_DIMS = 4
DEFAULT_ALIGNMENT = 32

# Value type number: struct format of one value.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9

# Tensor type number: name. The names are those that people see in file names.
TYPE_NAMES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K"},
    **{16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S"},
    **{23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16"},
    **{34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"},
}
# Tensor type name: values in a block, bytes of a block. Only these can be read.
BLOCKS = {"F32": (1, 4), "F16": (1, 2), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q8_0": (32, 34)}


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in the file.

    Attributes:
        shape: rows first, so (output, input) for a matrix.
        type: the name of its type, as `Q4_0`.
        offset: bytes from the start of the file.
        nbytes: its size in the file; 0 where the type is not one of `BLOCKS`.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Gguf:
    """The header of a GGUF file."""

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, Tensor]


def read_gguf(path: Path) -> Gguf:
    """Read the header of `path`; every tensor of a known type is then known to lie wholly in the file.

    Raises:
        ModelRejected: the file is missing, not a regular file, or may not be read.
        ConversionRefused: it is not a GGUF file, or it is damaged.
    """
    try:
        # A named pipe would block the open for ever, so look first.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelRejected("This is not a file.", where=str(path), remedy="Give the path of a .gguf file.")
        with path.open("rb") as file:
            return _read(path, file)
    except OSError as error:
        raise ModelRejected(
            f"The model file cannot be read: {error.strerror or error}.",
            where=str(path),
            remedy="Check the path and the permissions of the file.",
        ) from error


def _read(path: Path, file: BinaryIO) -> Gguf:
    cursor = _Cursor(path, file)
    magic = cursor.take(4) if cursor.size >= 4 else b""
    if magic != b"GGUF":
        raise ConversionRefused(
            "This is not a GGUF file.",
            where=str(path),
            remedy="Give a file whose name ends in .gguf, downloaded whole.",
        )
    version = cursor.integer("I")
    if version not in (2, 3):
        raise ConversionRefused(
            f"GGUF version {version} is not supported; versions 2 and 3 are, in little-endian byte order.",
            where=str(path),
            remedy="Convert the model again with a current llama.cpp.",
        )
    tensor_count = cursor.integer("Q")
    key_count = cursor.integer("Q")
    # The smallest tensor entry takes 24 bytes, the smallest key 13.
    cursor.check_count("tensors", tensor_count, 24, MAX_TENSORS)
    cursor.check_count("keys", key_count, 13, MAX_KEYS)

    metadata: dict[str, Value] = {}
    for _ in range(key_count):
        key = cursor.text(MAX_NAME_BYTES)
        if key in metadata:
            raise cursor.damaged(f"it holds the key {key!r} twice")
        metadata[key] = _value(cursor, key)

    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= 65_536 or alignment & (alignment - 1):
        raise cursor.damaged(f"general.alignment is {alignment!r}, which is no power of two")

    entries = [_tensor_entry(cursor) for _ in range(tensor_count)]
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    for entry in entries:
        if entry.name in tensors:
            raise cursor.damaged(f"it holds the tensor {entry.name!r} twice")
        if entry.offset % alignment:
            raise cursor.damaged(f"the tensor {entry.name!r} is not aligned to {alignment} bytes")
        tensor = Tensor(entry.name, entry.shape, entry.type, data_start + entry.offset, entry.nbytes)
        if tensor.offset + tensor.nbytes > cursor.size:
            raise cursor.damaged(f"the tensor {entry.name!r} lies beyond its end")
        tensors[entry.name] = tensor
    _check_no_overlap(cursor, list(tensors.values()))
    return Gguf(path, metadata, tensors)


def _value(cursor: _Cursor, key: str) -> Value:
    kind = cursor.integer("I")
    if kind == STRING:
        return cursor.text(MAX_HEADER_BYTES)
    if kind in SCALARS:
        return cursor.numbers(SCALARS[kind], 1)[0]
    if kind != ARRAY:
        raise cursor.damaged(f"the value of {key!r} is of the unknown type {kind}")
    item_kind = cursor.integer("I")
    count = cursor.integer("Q")
    if item_kind == STRING:
        cursor.check_count(f"items of {key!r}", count, 8, MAX_ARRAY_ITEMS)
        return [cursor.text(MAX_HEADER_BYTES) for _ in range(count)]
    if item_kind not in SCALARS:
        raise cursor.damaged(f"the items of {key!r} are of the unknown type {item_kind}")
    item_bytes = struct.calcsize(SCALARS[item_kind])
    cursor.check_count(f"items of {key!r}", count, item_bytes, MAX_ARRAY_ITEMS)
    return cursor.numbers(SCALARS[item_kind], count)


def _tensor_entry(cursor: _Cursor) -> Tensor:
    """One tensor entry; its offset still counts from the start of the data."""
    name = cursor.text(MAX_NAME_BYTES)
    dims = cursor.integer("I")
    if not 1 <= dims <= MAX_DIMS:
        raise cursor.damaged(f"the tensor {name!r} has {dims} dimensions")
    shape = tuple(cursor.integer("Q") for _ in range(dims))[::-1]  # ggml writes the row length first
    type_number = cursor.integer("I")
    offset = cursor.integer("Q")
    if min(shape) < 1:
        raise cursor.damaged(f"the tensor {name!r} has the shape {shape}")
    kind = TYPE_NAMES.get(type_number, f"type {type_number}")
    nbytes = 0
    if kind in BLOCKS:
        values, block_bytes = BLOCKS[kind]
        if shape[-1] % values:
            raise cursor.damaged(f"the rows of {name!r} ({kind}) are no multiple of {values} long: {shape}")
        nbytes = math.prod(shape) // values * block_bytes
    return Tensor(name, shape, kind, offset, nbytes)


def _check_no_overlap(cursor: _Cursor, tensors: list[Tensor]) -> None:
    # Entries that share bytes would let a small file ask for any amount of memory.
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise cursor.damaged(f"the tensor {tensor.name!r} overlaps another one")
        end = tensor.offset + tensor.nbytes


class _Cursor:
    """Reads forward through the header, and never past its limit or the file's end."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0

    def damaged(self, what: str) -> ConversionRefused:
        return ConversionRefused(
            f"The GGUF file is damaged: {what}.",
            where=f"{self.path}, byte {self.position}",
            remedy="Download the file again, and compare its size with that of the original.",
        )

    def take(self, count: int) -> bytes:
        if count > min(self.size, MAX_HEADER_BYTES) - self.position:
            reason = "its header is cut off" if self.size <= MAX_HEADER_BYTES else "its header is too long"
            raise self.damaged(reason)
        data = self.file.read(count)
        if len(data) != count:
            raise self.damaged("it became shorter while it was read")
        self.position += count
        return data

    def integer(self, form: str) -> int:
        return int(self.numbers(form, 1)[0])

    def numbers(self, form: str, count: int) -> list[Scalar]:
        data = self.take(struct.calcsize(form) * count)
        return list(struct.unpack(f"<{count}{form}", data))

    def text(self, limit: int) -> str:
        length = self.integer("Q")
        if length > limit:
            raise self.damaged(f"a text of {length} bytes")
        # Bytes that are no UTF-8 survive as surrogates, and are refused where they matter.
        return self.take(length).decode("utf-8", "surrogateescape")

    def check_count(self, what: str, count: int, least_bytes: int, limit: int) -> None:
        if count > limit or count * least_bytes > self.size - self.position:
            raise self.damaged(f"it claims {count} {what}, more than it can hold")
