"""Safetensors files that are written without MLX: what MLX and the safetensors package read from them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import safetensors.numpy

from qlora_engine.training.tensor_file import on_host, write

ARRAYS = {
    "b.turned": mx.arange(12, dtype=mx.float32).reshape(3, 4).T,
    "a": mx.array([1.5, -0.0, float("nan")], mx.float16),
    "count": mx.array(1 << 40, mx.uint64),
    "flags": mx.array([True, False]),
    "none": mx.zeros((0, 7)),
    "words": mx.array([-1, 2], mx.int32),
}


def test_what_is_written_is_read_by_others(tmp_path: Path) -> None:
    """To the bit, with types, shapes and metadata: mlx_lm takes adapters from such a file."""
    file = tmp_path / "a.safetensors"
    digest = write(file, on_host(ARRAYS), {"format": "mlx"})
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    arrays, metadata = mx.load(str(file), return_metadata=True)
    assert metadata == {"format": "mlx"}
    theirs = safetensors.numpy.load_file(file)
    assert arrays.keys() == theirs.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        for found in (np.array(arrays[name]), theirs[name]):
            assert (found.dtype, found.shape) == (np.array(array).dtype, array.shape)
            assert found.tobytes() == np.array(array).tobytes()


def test_the_same_arrays_give_the_same_bytes(tmp_path: Path) -> None:
    """A run that was stopped must end with the files of one that was not, whatever order its arrays came in."""
    for name, items in (("a", ARRAYS.items()), ("b", reversed(ARRAYS.items()))):
        write(tmp_path / name, on_host(dict(items)))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    """Rather than written as something else."""
    with pytest.raises(KeyError):
        write(tmp_path / "a", {"a": np.zeros(2, np.complex64)})
