"""The kernels for adapters: their sources run on the processor give the products of matrices that they stand for."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from qlora_engine.training import adapter_kernels, cuda
from qlora_engine.training.adapter_kernels import Layout
from qlora_engine.training.adapter_products import ByKernels
from support.cuda_on_cpu import run

DRAW = np.random.default_rng(0)
# With a rank that is no multiple of 16, of one tile and more, and with layers of unequal width.
LAYOUTS = [Layout(8, (128, 64)), Layout(32, (64, 192)), Layout(24, (64,))]
ROWS = (64, 81, 1)  # full tiles, more than the warps of a block have at once with a last one that is not, and one row


@pytest.fixture(autouse=True)
def on_the_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kernels with few warps a block, for each of their threads is one."""

    def started(kernel: cuda.Kernel, inputs: list[mx.array], *, constants: Any, kind: mx.Dtype, **how: Any) -> Any:
        assert kind == mx.float16
        found = run(kernel, [np.array(x) for x in inputs], constants=dict(constants), folder=tmp_path, **how)
        return [mx.array(array) for array in found]

    monkeypatch.setattr(cuda.Kernel, "__call__", started)
    for name in ("INNER_WARPS", "OUTER_WARPS", "ADD_WARPS", "INNER_AHEAD", "OUTER_AHEAD", "ADD_TILES"):
        monkeypatch.setattr(adapter_kernels, name, 2)


def drawn(*shape: int) -> mx.array:
    return mx.array(DRAW.normal(size=shape).astype(np.float16))


def near(found: mx.array, *expected: np.ndarray) -> None:
    """Equal to these side by side but for the rounding of float16."""
    wanted = np.concatenate(expected, axis=-1)
    np.testing.assert_allclose(np.array(found).astype(np.float64), wanted, atol=2e-3 * np.abs(wanted).max())


def matrices(w: mx.array, layout: Layout) -> list[np.ndarray]:
    """Each by itself, float64."""
    ends = layout.rank * np.cumsum(layout.widths)[:-1]
    return [part.reshape(layout.rank, -1) for part in np.split(np.array(w).astype(np.float64), ends)]


def columns(x: mx.array, layout: Layout) -> list[np.ndarray]:
    """Those of each layer, float64."""
    return np.split(np.array(x).astype(np.float64), np.cumsum(layout.widths)[:-1], axis=1)


def ranks(inner: mx.array, layout: Layout) -> list[np.ndarray]:
    """Those of each layer, float64."""
    return np.split(np.array(inner).astype(np.float64), len(layout.widths), axis=1)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_onto_the_ranks(layout: Layout) -> None:
    """Each layer's columns onto its own."""
    for rows in ROWS:
        x, w = drawn(rows, layout.columns), drawn(layout.rank * layout.columns)
        pairs = zip(columns(x, layout), matrices(w, layout), strict=True)
        near(adapter_kernels.inner(x, w, layout), *(mine @ matrix.T for mine, matrix in pairs))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_over_the_rows(layout: Layout) -> None:
    """The gradients of the matrices before the ranks and after them, as they lie."""
    before = Layout(layout.ranks, (128,))
    for rows in ROWS:
        back, x = drawn(rows, layout.ranks), drawn(rows, 128)
        inner, y = drawn(rows, layout.ranks), drawn(rows, layout.columns)
        of_a, of_b = adapter_kernels.outer(back, x, inner, y, of_x=before, of_y=layout)
        assert of_a.shape == (layout.ranks, 128)
        near(of_a, np.array(back).astype(np.float64).T @ np.array(x).astype(np.float64))
        pairs = zip(ranks(inner, layout), columns(y, layout), strict=True)
        near(of_b, *((mine.T @ of_y).reshape(-1) for mine, of_y in pairs))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_added_to_what_is_there(layout: Layout) -> None:
    """Each layer's ranks times its matrix, onto its own columns."""
    for rows in ROWS:
        y, inner, w = drawn(rows, layout.columns), drawn(rows, layout.ranks), drawn(layout.rank * layout.columns)
        parts = zip(columns(y, layout), ranks(inner, layout), matrices(w, layout), strict=True)
        near(adapter_kernels.add(y, inner, w, layout), *(of_y + mine @ matrix for of_y, mine, matrix in parts))


@pytest.mark.parametrize("layers", [1, 2])
def test_matrices_lie_in_rows(layers: int) -> None:
    """What does not is copied at each product."""
    laid = ByKernels(8, 64, [128] * layers).laid([(drawn(64, 8), drawn(8, 128))] * layers)
    assert all(np.array(matrix, copy=False).flags.c_contiguous for matrix in laid)
    assert [matrix.shape for matrix in laid] == [(8 * layers, 64), (8 * layers * 128,)]


def test_where_they_fit() -> None:
    """Others are computed as before."""
    fits = partial(map, lambda layout: layout.fits)
    assert all(fits(LAYOUTS))
    assert not any(fits([Layout(4, (64,)), Layout(8, (64, 32))]))
