"""Dequantization: MLX's numbers, whoever makes them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from qlora_engine.training import unpack
from qlora_engine.training.device import on_cuda


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize(("rows", "columns", "group"), [(64, 512, 64), (32, 256, 32), (3, 128, 64)])
def test_it_gives_the_numbers_of_mlx(bits: int, kind: mx.Dtype, rows: int, columns: int, group: int) -> None:
    """Weights that differ from those that are saved and used later would be trained around."""
    matrix = mx.random.normal((rows, columns), key=mx.random.key(1)).astype(kind)
    parts = mx.quantize(matrix, group, bits)
    made = unpack.unpack(parts, group, bits, "affine", kind)
    expected = mx.dequantize(*parts, group, bits, dtype=kind)
    assert made.dtype == kind
    tolerance = 2.0**-6 if on_cuda() else 0.0  # of a GPU's kernels each rounds in its own place
    np.testing.assert_allclose(
        np.array(made.astype(mx.float32)), np.array(expected.astype(mx.float32)), atol=tolerance, rtol=tolerance
    )


def test_without_biases_it_is_mlx() -> None:
    """mxfp4 has none."""
    packed, scales = mx.quantize(mx.random.normal((32, 64), key=mx.random.key(1)), 32, 4, "mxfp4")
    made = unpack.unpack((packed, scales, None), 32, 4, "mxfp4", mx.float32)
    assert mx.array_equal(made, mx.dequantize(packed, scales, None, 32, 4, "mxfp4", dtype=mx.float32))


def test_the_kernel_is_asked_for_on_cuda_alone() -> None:
    """Elsewhere there is none, and asking for one would be an error."""
    assert unpack.works() is on_cuda()
