"""Which rows a step trains on: every row once an epoch, in an order that seed and epoch decide."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from qlora_engine.training.batches import Plan, Window, epoch_order, evaluation_batches, split
from qlora_engine.training.data import Document


def document(length: int, fill: int = 1) -> Document:
    supervised = np.ones(length, np.bool_)
    supervised[:1] = False
    return Document(np.full(length, fill, np.int32), supervised)


def plan(rows: int, *, batch_size: int = 3, accumulation: int = 2, steps: int = 1000, seed: int = 0) -> Plan:
    return Plan([5 + row % 7 for row in range(rows)], batch_size, accumulation, seed, steps)


def all_windows(of: Plan) -> list[Window]:
    return list(of.windows(epoch=0, index=0, step=0))


def rows_of(windows: list[Window]) -> list[int]:
    return [row for window in windows for rows in window.micro_batches for row in rows]


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 7, 23, 41])
@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 1), (3, 2), (4, 5), (50, 3)])
def test_every_row_comes_once_an_epoch(rows: int, batch_size: int, accumulation: int) -> None:
    """mlx_lm drops the same trailing rows every epoch; what nobody trains on, nobody learns."""
    made = plan(rows, batch_size=batch_size, accumulation=accumulation)
    made = Plan(made.lengths, batch_size, accumulation, 0, 3 * made.steps_per_epoch)
    windows = all_windows(made)
    for epoch in range(3):
        mine = [window for window in windows if window.epoch == epoch]
        assert sorted(rows_of(mine)) == list(range(rows))
        assert [window.index for window in mine] == list(range(made.windows_per_epoch))
    assert sum(len(window.micro_batches) for window in windows) == made.steps
    assert len(windows) == made.updates


def test_the_order_is_pinned() -> None:
    """A new version that orders rows otherwise could not resume what an old one began."""
    assert epoch_order(12, 0, 0).tolist() == [0, 2, 11, 9, 1, 8, 5, 4, 3, 10, 6, 7]
    assert epoch_order(12, 0, 1).tolist() == [5, 3, 7, 8, 11, 2, 4, 1, 10, 0, 6, 9]
    assert epoch_order(12, 2**63 - 1, 0).tolist() == [8, 11, 1, 6, 9, 3, 2, 7, 10, 4, 0, 5]


def test_orders_of_seeds_and_epochs_differ_and_are_fair() -> None:
    """Each row must be as likely in every place."""
    orders = [tuple(epoch_order(20, seed, epoch)) for seed in range(20) for epoch in range(20)]
    assert len(set(orders)) == 400
    first = Counter(order[0] for order in orders)
    assert len(first) == 20
    assert max(first.values()) < 45  # 20 expected


@pytest.mark.parametrize("steps", range(1, 30))
@pytest.mark.parametrize("rows", [7, 23])
def test_iters_end_the_run_to_the_micro_batch(rows: int, steps: int) -> None:
    """A job that asks for 10 iterations gets 10, with its last window cut and applied."""
    made = plan(rows, steps=steps)
    windows = all_windows(made)
    assert sum(len(window.micro_batches) for window in windows) == steps
    assert len(windows) == made.updates
    assert all(1 <= len(window.micro_batches) <= 2 for window in windows)
    assert all(1 <= len(rows) <= 3 for window in windows for rows in window.micro_batches)


def test_a_run_can_begin_at_any_window() -> None:
    """Position is (epoch, window, step); what follows from it is what would have followed."""
    made = plan(23, steps=37)
    windows = all_windows(made)
    step = 0
    for number, window in enumerate(windows):
        assert list(made.windows(epoch=window.epoch, index=window.index, step=step)) == windows[number:]
        step += len(window.micro_batches)
    # `Progress` points at the next epoch after the last window; the plan itself may also count on.
    assert list(made.windows(epoch=0, index=made.windows_per_epoch, step=8)) == list(
        made.windows(epoch=1, index=0, step=8)
    )


def test_rows_of_a_window_are_dealt_by_length() -> None:
    """Rows of like length in one micro-batch waste the least padding."""
    made = plan(24, batch_size=4, accumulation=3)
    for window in all_windows(made)[:2]:
        lengths = [made.lengths[row] for rows in window.micro_batches for row in rows]
        assert lengths == sorted(lengths)


@pytest.mark.parametrize(
    ("rows", "batch_size", "epochs", "steps"),
    [
        (20, 2, 1.0, 10),
        (21, 2, 1.0, 11),
        (21, 2, 2.0, 22),
        (20, 2, 0.5, 5),
        (20, 2, 0.01, 1),
        (20, 2, 1.1, 11),  # 1.1 × 10 is a little over 11 in binary
        (20, 2, 2.3, 23),
        (5, 50, 3.0, 3),
        (1, 1, 0.5, 1),
    ],
)
def test_epochs_set_the_length_in_passes_over_the_data(rows: int, batch_size: int, epochs: float, steps: int) -> None:
    """`epochs` replaces `iters`; a fraction ends within an epoch."""
    documents = [document(5)] * rows
    made = Plan.of(documents, batch_size=batch_size, accumulation=2, seed=0, iters=1000, epochs=epochs)
    assert made.steps == steps


def test_evaluation_rows_are_the_same_every_time() -> None:
    """Losses of other rows cannot be compared."""
    lengths = [5 + row % 9 for row in range(50)]
    first = evaluation_batches(lengths, 4, 10, seed=1)
    assert first == evaluation_batches(lengths, 4, 10, seed=1)
    assert [len(rows) for rows in first] == [4, 4, 2]
    drawn = {row for rows in first for row in rows}
    assert len(drawn) == 10
    # Also when memory allows fewer at once.
    assert {row for rows in evaluation_batches(lengths, 2, 10, seed=1) for row in rows} == drawn
    assert first != evaluation_batches(lengths, 4, 10, seed=2)


def test_evaluation_of_all_rows_takes_each_once() -> None:
    """-1 means all; more than there are means all too."""
    lengths = [5 + row % 9 for row in range(10)]
    for count in (-1, 100):
        chosen = evaluation_batches(lengths, 4, count, seed=0)
        assert sorted(row for rows in chosen for row in rows) == list(range(10))
        assert [len(rows) for rows in chosen] == [4, 4, 2]
    assert evaluation_batches(lengths, 4, 0, seed=0) == []


def test_split_leaves_a_short_end() -> None:
    """Nothing is dropped to make a batch even."""
    assert list(split(range(7), 3)) == [(0, 1, 2), (3, 4, 5), (6,)]
    assert list(split([], 3)) == []
