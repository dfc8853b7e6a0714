"""Where a run stands, and when something is due."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from qlora_engine.job.spec import EarlyStopping
from qlora_engine.training.batches import Plan, Window
from qlora_engine.training.guard import Guard
from qlora_engine.training.progress import Progress
from qlora_engine.training.results import Update

APPLIED = Update(applied=True, count=7, gradient_norm=0.5, learning_rate=1e-3)
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
    guard = Guard(last_good=2)
    progress = Progress().after_batch(1, 10.0, 4, Guard(last_good=1)).after_batch(2, 2.0, 1, guard)
    assert (progress.step, progress.tokens) == (3, 5)
    assert (progress.report_loss, progress.report_tokens, progress.report_steps) == (12.0, 5, 3)
    assert (progress.update, progress.guard) == (0, guard)
    after = progress.after_report()
    assert (after.report_loss, after.report_tokens, after.report_steps) == (0.0, 0, 0)
    assert (after.step, after.tokens) == (3, 5)


def test_a_window_points_at_the_next() -> None:
    """The position is what a resumed run starts from."""
    guard = Guard(last_good=1)
    progress = Progress().after_window(Window(0, 0, 0, ((1,),)), PLAN, APPLIED, guard)
    assert (progress.epoch, progress.window, progress.update) == (0, 1, 1)
    progress = progress.after_window(Window(0, 2, 0, ((1,),)), PLAN, APPLIED, guard)
    assert (progress.epoch, progress.window, progress.update) == (1, 0, 2)
    assert (progress.learning_rate, progress.gradient_norm) == (1e-3, 0.5)


def test_an_update_that_was_not_applied_is_none() -> None:
    """A run without a single one has learned nothing, and says so at its end."""
    kept = Update(applied=False, count=0, gradient_norm=math.nan, learning_rate=1e-3)
    progress = Progress().after_window(Window(0, 0, 0, ((1,),)), PLAN, kept, Guard(dropped=(0,)))
    assert (progress.update, progress.window) == (0, 1)
    assert progress.guard.dropped == (0,)


def validated(losses: list[float], stopping: EarlyStopping | None = None) -> list[Progress]:
    """Where a run stands after each of these validations, ten micro-batches apart."""
    found = [Progress()]
    for index, loss in enumerate(losses):
        found.append(replace(found[-1], step=10 * index).after_validation(loss, stopping))
    return found[1:]


def test_validations_keep_the_first_the_last_and_the_best() -> None:
    """The report compares before and after; the best checkpoint is kept."""
    progress = validated([3.0, 2.0, 2.5])[-1]
    assert (progress.loss_before, progress.loss_last) == (3.0, 2.5)
    assert (progress.best_loss, progress.best_step, progress.validated) == (2.0, 10, 20)


def test_a_loss_that_is_no_number_is_never_the_best() -> None:
    """Nothing is less than NaN, so a NaN that came first would stay the best for good."""
    first, second, third = validated([math.nan, 2.0, math.nan])
    assert first.best_step is None
    assert second.best_loss == third.best_loss == 2.0


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "stopped_at"),
    [
        ([3.0, 2.0, 1.0, 0.5], 1, 0.0, None),
        ([3.0, 3.0], 1, 0.0, 1),  # no improvement is none
        ([math.nan, 2.0, 1.0], 1, 0.0, None),  # before the first step nothing can have been made worse
        ([3.0, 2.0, 2.1, 2.2], 2, 0.0, 3),
        ([3.0, 2.0, 2.1, 1.9, 2.0, 2.0], 2, 0.0, 5),  # an improvement begins the count anew
        ([3.0, 2.85, 2.7, 2.55, 2.4], 2, 0.25, None),  # together they are one: measured from the lowest that counted
        ([3.0, 2.9, 2.8], 2, 0.25, 2),
        ([3.0, 2.5, 2.3, 2.26], 2, 0.25, 3),
        ([3.0, math.nan, math.nan], 2, 0.0, 2),
        ([3.0, 4.0, 5.0], 3, 0.0, None),
    ],
)
def test_early_stopping_waits_for_its_patience(
    losses: list[float], patience: int, min_delta: float, stopped_at: int | None
) -> None:
    """Stopping too soon wastes what was trained, too late what is still to be."""
    stopped = [p.stopped_early for p in validated(losses, EarlyStopping(patience=patience, min_delta=min_delta))]
    assert (stopped.index(True) if True in stopped else None) == stopped_at


def test_without_early_stopping_a_run_goes_to_its_end() -> None:
    """It is asked for or it is not there."""
    assert not any(progress.stopped_early for progress in validated([1.0] * 20))


def test_the_best_is_the_lowest_whatever_counts_as_an_improvement() -> None:
    """`min_delta` says when to stop, not which checkpoint is the best."""
    progress = validated([3.0, 2.9], EarlyStopping(min_delta=0.5))[-1]
    assert (progress.best_loss, progress.best_step) == (2.9, 10)


def test_training_can_go_back_to_the_last_two_checkpoints_made_by_count() -> None:
    """Those of a stop, a time or a best validation are not there in an undisturbed run."""
    progress = Progress().after_save(by_count=True)
    for step, by_count in ((4, True), (6, False), (8, True), (9, False)):
        progress = replace(progress, step=step, best_step=step - 1, guard=Guard(last_good=step))
        progress = progress.after_save(by_count=by_count)
    assert (progress.anchors, progress.anchor_bests) == ((4, 8), (3, 7))
    assert (progress.saved, progress.saved_best) == (9, 8)
    assert replace(progress, step=8).after_save(by_count=True).anchors == (4, 8)  # reached again: not twice


@pytest.mark.parametrize("guard", [Guard(dropped=(8, 9), last_good=8), Guard(skipped=(8, 9), last_good=8)])
def test_a_checkpoint_amid_bad_micro_batches_is_none_to_go_back_to(guard: Guard) -> None:
    """Frequent checkpoints would push out the good ones before five in a row are counted."""
    progress = Progress(step=10, anchors=(4, 8), anchor_bests=(0, 0), guard=guard).after_save(by_count=True)
    assert progress.anchors == (4, 8)


def test_progress_goes_through_json_unchanged() -> None:
    """A resumed run must see the very numbers, to the last bit of a float."""
    progress = Progress(
        step=3,
        report_loss=0.1 + 0.2,
        best_loss=1 / 3,
        gradient_norm=math.nan,
        anchors=(0, 2),
        anchor_bests=(None, 1),
        guard=Guard(dropped=(1, 2), last_good=1, skipped=(0,), rollbacks=1, rate_factor=0.5, target=0),
    )
    back = Progress.of(json.loads(json.dumps(progress.as_json())))
    assert repr(back) == repr(progress)
