"""Where a run stands, and when something is due."""

from __future__ import annotations

import json
import math

import pytest

from qlora_engine.training.batches import Plan, Window
from qlora_engine.training.progress import Progress
from qlora_engine.training.step import Update

APPLIED = Update(applied=True, loss=3.0, gradient_norm=0.5, learning_rate=1e-3)
PLAN = Plan([5] * 10, batch_size=2, accumulation=2, seed=0, steps=100)  # windows of 2, 2 and 1 micro-batches


@pytest.mark.parametrize(
    ("step", "every", "last", "steps", "expected"),
    [
        (0, 10, -1, 100, True),  # before the first step
        (0, 10, 0, 100, False),  # saved at 0 means: never yet, and there is nothing to save
        (9, 10, 0, 100, False),
        (10, 10, 0, 100, True),
        (10, 10, 10, 100, False),  # just done
        (11, 10, 0, 100, True),  # the window strode over 10
        (19, 10, 11, 100, False),  # 11 stood for 10, so the next is 20
        (20, 10, 11, 100, True),
        (45, 10, 20, 100, True),  # strode over two of them: once
        (100, 10, 91, 100, True),
        (97, 200, 0, 97, True),  # at the end in any case
        (97, 200, 97, 97, False),
        (101, 10, 99, 101, True),
        (1, 1, 0, 100, True),
    ],
)
def test_what_recurs_is_due_at_multiples_and_at_the_end(
    step: int, every: int, last: int, steps: int, expected: bool
) -> None:
    """A validation or a checkpoint may be late by a window, never left out, never done twice."""
    assert Progress(step=step).due(every, last, steps) is expected


@pytest.mark.parametrize("stride", range(1, 8))
@pytest.mark.parametrize("every", range(1, 8))
def test_between_two_occasions_lie_no_more_steps_than_asked_and_a_window(every: int, stride: int) -> None:
    """`save_every` bounds what a crash can cost."""
    steps, last, done = 60, 0, []
    for step in [*range(stride, steps, stride), steps]:
        if Progress(step=step).due(every, last, steps):
            done.append(step)
            last = step
    gaps = [b - a for a, b in zip([0, *done], done, strict=False)]
    assert max(gaps) <= every + stride - 1
    assert done[-1] == steps
    if stride == 1:
        assert done == sorted({*range(every, steps + 1, every), steps})


def test_a_micro_batch_counts() -> None:
    """Sums of losses and tokens, so that a report weighs tokens, not micro-batches."""
    progress = Progress().after_micro_batch(10.0, 4).after_micro_batch(2.0, 1)
    assert (progress.step, progress.tokens) == (2, 5)
    assert (progress.report_loss, progress.report_tokens, progress.report_steps) == (12.0, 5, 2)
    assert progress.update == 0
    after = progress.after_report()
    assert (after.report_loss, after.report_tokens, after.report_steps) == (0.0, 0, 0)
    assert (after.step, after.tokens) == (2, 5)


def test_a_window_points_at_the_next() -> None:
    """The position is what a resumed run starts from."""
    progress = Progress().after_window(Window(0, 0, ((1,),)), PLAN, APPLIED, dropped=False)
    assert (progress.epoch, progress.window, progress.update) == (0, 1, 1)
    progress = progress.after_window(Window(0, 2, ((1,),)), PLAN, APPLIED, dropped=False)
    assert (progress.epoch, progress.window, progress.update) == (1, 0, 2)
    assert (progress.learning_rate, progress.gradient_norm) == (1e-3, 0.5)


def test_windows_dropped_in_a_row_are_counted() -> None:
    """One bad window is bad luck; five are a job that cannot go on."""
    bad = Update(applied=False, loss=math.nan, gradient_norm=math.nan, learning_rate=1e-3)
    window = Window(0, 0, ((1,),))
    progress = Progress()
    for dropped, expected in ((True, 1), (True, 2), (False, 0), (True, 1)):
        progress = progress.after_window(window, PLAN, bad if dropped else APPLIED, dropped=dropped)
        assert progress.dropped == expected
    assert progress.update == 1


def test_validations_keep_the_first_the_last_and_the_best() -> None:
    """The report compares before and after; the best checkpoint is kept."""
    progress = Progress()
    for step, loss in ((0, 3.0), (10, 2.0), (20, 2.5)):
        progress = Progress(**{**progress.as_json(), "step": step}).after_validation(loss)
    assert (progress.loss_before, progress.loss_last) == (3.0, 2.5)
    assert (progress.best_loss, progress.best_step, progress.validated) == (2.0, 10, 20)


def test_a_loss_that_is_no_number_is_never_the_best() -> None:
    """Nothing is less than NaN, so a NaN that came first would stay the best for good."""
    progress = Progress().after_validation(math.nan)
    assert progress.best_step is None
    progress = progress.after_validation(2.0).after_validation(math.nan)
    assert progress.best_loss == 2.0


def test_progress_goes_through_json_unchanged() -> None:
    """A resumed run must see the very numbers, to the last bit of a float."""
    progress = Progress(step=3, report_loss=0.1 + 0.2, best_loss=1 / 3, gradient_norm=math.nan)
    back = Progress(**json.loads(json.dumps(progress.as_json())))
    assert repr(back) == repr(progress)
