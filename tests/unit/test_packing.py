"""The layout of a window: every document once, within the memory of the widest micro-batch, as fast as can be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qlora_engine.job.preflight.batch import GRID, Grid
from qlora_engine.training.batches import Plan, Window
from qlora_engine.training.packing import Batch, Packing, deal, lay_out
from qlora_engine.training.packing_choice import attention_of


def plan_of(seed: int, *, rows: int, batch_size: int, accumulation: int) -> Plan:
    draw = np.random.default_rng(seed)
    lengths = np.clip(draw.lognormal(3.5, 0.8, rows), 0, 300).astype(int).tolist()
    return Plan(lengths, batch_size, accumulation, seed, -(-rows // batch_size))


def packing_of(plan: Plan, *, joined: bool = True, attention: float = 1e9, widest: int = 0) -> Packing:
    grid = Grid(8)
    return Packing(joined, grid, attention, grid.width(plan.widest), grid.width(widest or plan.widest))


def positions(batch: Batch, plan: Plan, packing: Packing) -> int:
    """Computed for a batch."""
    inputs = [sum(max(0, plan.lengths[document] - 1) for document in row) for row in batch.rows]
    return len(batch.rows) * packing.width(max(inputs))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 1), (1, 8), (4, 1), (4, 4), (16, 2), (300, 1)])
@pytest.mark.parametrize(("attention", "widest"), [(50.0, 0), (1e9, 0), (1e9, 4096)])
def test_every_document_has_its_place_and_no_batch_is_larger_than_one_could_be(  # they come by name
    seed: int, batch_size: int, accumulation: int, attention: float, widest: int
) -> None:
    """What is joined must fit where the documents one by one would have fitted, or memory runs out."""
    plan = plan_of(seed, rows=101, batch_size=batch_size, accumulation=accumulation)
    packing = packing_of(plan, attention=attention, widest=widest)
    step = 0
    for window in plan.windows(epoch=0, index=0, step=0):
        batches = lay_out(window, plan.lengths, packing, batch_size)
        assert batches == lay_out(window, plan.lengths, packing, batch_size)
        expected = sorted(document for documents in window.micro_batches for document in documents)
        assert sorted(document for batch in batches for document in batch.documents) == expected
        for batch in batches:
            assert batch.step == step
            assert batch.steps >= 1
            step += batch.steps
            assert positions(batch, plan, packing) <= batch_size * packing.longest
            assert all(sum(max(0, plan.lengths[d] - 1) for d in row) <= packing.widest for row in batch.rows)
    assert step == plan.steps


def test_joining_saves_most_of_the_padding() -> None:
    """Instruction data in micro-batches of four: a third of the positions would be padding."""
    plan = plan_of(3, rows=400, batch_size=4, accumulation=1)

    def padding(packing: Packing) -> float:
        windows = list(plan.windows(epoch=0, index=0, step=0))
        batches = [batch for window in windows for batch in lay_out(window, plan.lengths, packing, 4)]
        filled = sum(max(0, length - 1) for length in plan.lengths)
        return 1 - filled / sum(positions(batch, plan, packing) for batch in batches)

    assert padding(packing_of(plan, joined=False)) > 0.3
    assert padding(packing_of(plan)) < 0.08
    assert padding(packing_of(plan, widest=1000)) < 0.05


def test_an_expensive_attention_keeps_rows_narrow() -> None:
    """A row's attention grows with the square of its width; where that counts, padding is cheaper."""
    window, lengths = Window(0, 0, 0, ((0, 1, 2, 3),)), [25, 25, 25, 50]
    for attention, rows in ((1.0, 3), (1e9, 1)):
        packing = Packing(True, Grid(8), attention, 128, 128)
        (batch,) = lay_out(window, lengths, packing, 4)
        assert len(batch.rows) == rows


@pytest.mark.parametrize(("attention", "share"), [(1e9, 0.7), (4096.0, 1.0), (1024.0, 1.0)])
def test_where_shapes_are_compiled_there_are_few(attention: float, share: float) -> None:
    """Of layouts that are as good as one another the most usual one: each shape costs as much as many batches."""
    plan = plan_of(4, rows=1600, batch_size=4, accumulation=1)

    def laid_out(grid: Grid) -> tuple[int, list[float]]:
        packing = Packing(True, grid, attention, grid.least(plan.widest), 4096)
        inputs = {document: max(1, length - 1) for document, length in enumerate(plan.lengths)}
        windows = plan.windows(epoch=0, index=0, step=0)
        batches = [batch for window in windows for batch in lay_out(window, plan.lengths, packing, 4)]
        shapes = {
            (len(batch.rows), positions(batch, plan, packing) // len(batch.rows), max(map(len, batch.rows)) > 1)
            for batch in batches
        }
        return len(shapes), [packing.cost(batch.rows, inputs) for batch in batches]

    few, cost_of_few = laid_out(GRID["cuda"])
    many, least = laid_out(replace(GRID["cuda"], shares=None))  # as if nothing were compiled
    assert few <= share * many
    assert sum(cost_of_few) <= 1.001 * sum(least)


def test_off_is_one_document_a_row() -> None:
    """A job may ask for the plain layout."""
    plan = plan_of(0, rows=20, batch_size=4, accumulation=2)
    for window in plan.windows(epoch=0, index=0, step=0):
        batches = lay_out(window, plan.lengths, packing_of(plan, joined=False), 4)
        assert [tuple(d for row in batch.rows for d in row) for batch in batches] == list(window.micro_batches)
        assert all(len(row) == 1 for batch in batches for row in batch.rows)


def test_short_of_memory_a_batch_is_computed_by_few_documents_at_a_time() -> None:
    """The ladder's rungs need a layout whose memory they know."""
    batch = Batch(((3, 1), (4,)), 0, 2)
    assert batch.parts(4, batch_size=4) == [((3, 1), (4,))]
    assert batch.parts(2, batch_size=4) == [((3,), (1,)), ((4,),)]
    assert batch.parts(1, batch_size=4) == [((3,),), ((1,),), ((4,),)]


def test_documents_are_dealt_evenly() -> None:
    """The widest group decides the width of all."""
    assert deal([0, 1, 2, 3, 4], {0: 7, 1: 5, 2: 4, 3: 4, 4: 2}, 2) == ((0, 3), (1, 2, 4))
    assert deal([0], {0: 3}, 3) == ((0,),)


def test_row_widths_are_few_and_little_waste() -> None:
    """MLX compiles anew for each width and never forgets one."""
    for grid, most in ((Grid(8), 160), (Grid(32), 120), (GRID["cuda"], 60)):
        widths = {inputs: grid.width(inputs) for inputs in range(1, 8192)}
        step = max(grid.step, grid.coarse)
        assert all(inputs <= width < max(inputs + step, 1.07 * inputs) for inputs, width in widths.items())
        assert len(set(widths.values())) < most
        assert grid.width(2048) == 2048


def test_attention_on_cuda_has_its_kernel_in_every_wide_row() -> None:
    """Without it a row of 2,047 positions keeps all its scores."""
    widths = [GRID["cuda"].width(inputs) for inputs in range(1, 5000)]
    assert all(width % 128 == 0 for width in widths if width > 256)


@pytest.mark.parametrize("attention", [80.0, 600.0, 10_000.0])
def test_two_times_tell_what_attention_costs(attention: float) -> None:
    """The model behind the choice of a layout."""
    inputs, count = 100, 4
    alone, joined = (width * (1 + width / attention) * rows for width, rows in ((inputs, count), (inputs * count, 1)))
    assert attention_of(alone, joined, inputs, count) == pytest.approx(attention, rel=1e-3)
    assert attention_of(1.0, 0.9, inputs, count) > 1e8
    assert attention_of(1.0, 5.0, inputs, count) < inputs
