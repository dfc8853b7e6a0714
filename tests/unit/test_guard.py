"""The guard: numbers that cannot be right are dropped and named, training goes back, and in the end gives up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qlora_engine.job.errors import TrainingFailed
from qlora_engine.training import checkpoint
from qlora_engine.training.data import Document
from qlora_engine.training.guard import Guard, place_of
from qlora_engine.training.progress import Progress
from support.fragile import (
    HUGE,
    INFINITE,
    NAN,
    PLACES,
    STEEP,
    UNKNOWN,
    fragile_model,
    rows_to_learn,
    spoiled,
    spoiled_steps,
    windows,
)
from support.rig import Process, until_done
from support.small import assert_close, assert_same

VALID = rows_to_learn(8, seed=1)


def process(folder: Path, rows: Sequence[Document], *, stop_after: int = 0, **keys: Any) -> Process:
    return Process(folder, rows, valid=VALID, make=fragile_model, stop_after=stop_after, keys=keys)


def assert_finite(made: Process) -> None:
    assert all(np.isfinite(array).all() for array in made.state.values())


# What is dropped


def test_bad_rows_at_seeded_places_are_named_and_harm_nothing(quick_path: Path) -> None:
    """NaN, infinity and 10^9 reach neither weights nor moments, and the run ends where it would have ended."""
    rows, valid = rows_to_learn(600), rows_to_learn(40, seed=1)
    draw = np.random.default_rng(4)
    bad = dict(
        zip(draw.choice(600, 6, replace=False).tolist(), [NAN, INFINITE, HUGE, STEEP, UNKNOWN, NAN], strict=True)
    )
    keys = {
        "epochs": 1.0,
        "batch_size": 4,
        "optimizer": "sgd",
        "lr_schedule": {"name": "cosine_decay", "arguments": [0.1, 75.0]},
        "save_every": 50,
        "steps_per_eval": 150,
    }
    clean = Process(quick_path / "clean", rows, valid=valid, make=fragile_model, keys=keys)
    hurt = Process(quick_path / "hurt", spoiled(rows, bad), valid=valid, make=fragile_model, keys=keys)
    without, after = clean.go(), hurt.go()
    batches = [rows for window in windows(rows, keys) for rows in window]
    expected = sorted(
        (step, PLACES[token], rows) for row, token in bad.items() for step, rows in enumerate(batches, 1) if row in rows
    )
    assert [(e["step"], e["place"], tuple(e["rows"])) for e in hurt.said("guard.dropped")] == expected
    said = {row: event for event in hurt.said("guard.dropped") for row in event["rows"]}
    for row, token in bad.items():
        event = said[row]
        match token:
            case x if x == NAN:
                assert (event["value"], math.isnan(event["loss"])) == ("nan", True)
            case x if x == INFINITE:
                assert (event["value"], event["loss"]) == ("inf", math.inf)
            case x if x == HUGE:
                assert 1e8 < event["loss"] < 1e10
                assert float(event["value"]) == pytest.approx(event["loss"], rel=1e-3)
            case x if x == STEEP:
                assert event["loss"] < 1000
                assert (event["value"], event["gradient_norm"]) == ("inf", math.inf)
            case _:
                assert event["value"] == f"token {UNKNOWN} of {UNKNOWN}"
    assert clean.said("guard.dropped") == []
    assert_finite(hurt)
    assert without.loss_last is not None
    assert without.loss_before is not None
    assert without.loss_last < 0.5 * without.loss_before
    assert after.loss_last == pytest.approx(without.loss_last, rel=0.03)


@pytest.mark.parametrize("token", PLACES)
def test_a_bad_micro_batch_counts_for_nothing(quick_path: Path, token: int) -> None:
    """The others of its window are applied as if it had not been there; the report's mean leaves it out."""
    rows = rows_to_learn(12)
    keys = {"grad_accumulation_steps": 3, "steps_per_report": 6}
    made = process(quick_path / "bad", spoiled_steps(rows, keys, [1], token), **keys)
    after = made.go()
    gone = windows(rows, keys)[0][1]
    assert [tuple(event["rows"]) for event in made.said("guard.dropped")] == [gone]
    assert after.tokens == sum(row.targets for number, row in enumerate(rows) if number not in gone)
    other = process(quick_path / "other", rows, **keys)
    progress = other.loop.run(Progress(guard=Guard(skipped=(1,))))
    assert_same(made.state, other.state)
    assert made.said("training.report")[0]["loss"] == other.said("training.report")[0]["loss"]
    assert progress.tokens == after.tokens


def test_an_update_that_overflows_is_dropped_with_all_its_rows(quick_path: Path) -> None:
    """Finite gradients under an absurd rate: no single micro-batch is to blame."""
    made = process(quick_path, rows_to_learn(48), optimizer="sgd", learning_rate=1e38)
    before = made.masters
    with pytest.raises(TrainingFailed):
        made.go()
    dropped = made.said("guard.dropped")
    assert {event["place"] for event in dropped} == {"update"}
    assert (dropped[0]["step"], dropped[0]["in_a_row"], len(dropped[0]["rows"])) == (2, 2, 4)
    assert (dropped[1]["step"], dropped[1]["in_a_row"]) == (4, 4)
    assert_same(made.masters, before)


def test_max_loss_is_the_job_s(quick_path: Path) -> None:
    """What is absurd depends on the vocabulary and the data."""
    rows = spoiled_steps(rows_to_learn(12), {}, [2], HUGE)
    assert len(process(quick_path / "a", rows).go().guard.skipped) == 0
    tolerant = process(quick_path / "b", rows, max_loss=1e12)
    tolerant.go()
    assert tolerant.said("guard.dropped") == []
    strict = process(quick_path / "c", rows_to_learn(36), max_loss=0.5)
    with pytest.raises(TrainingFailed):
        strict.go()


@pytest.mark.parametrize(
    ("loss", "count", "place"),
    [
        (math.nan, 5, "loss"),
        (math.inf, 5, "loss"),
        (501.0, 5, "loss"),
        (499.0, 5, "gradient"),
        (0.0, 0, "gradient"),
        (math.nan, 0, "loss"),
    ],
)
def test_the_place_is_the_loss_if_it_is_wrong_and_else_the_gradient(loss: float, count: int, place: str) -> None:
    """A person looks for the cause where the event points."""
    assert place_of(loss, count, max_loss=100.0) == place


# Going back


@pytest.mark.parametrize(
    ("anchors", "last_good", "target", "expected"),
    [
        ((0,), 0, None, 0),  # bad from the beginning
        ((0,), 3, None, 0),
        ((4, 8), 10, None, 8),
        ((4, 8), 8, None, 4),  # nothing was good after it: it may hold what broke the numbers
        ((4, 8), 10, 8, 4),  # it did not help the last time
        ((8, 12), 12, 8, 8),  # there is no other
        ((8, 12), 13, 8, 12),
        ((0, 4), 5, 4, 0),
        ((0,), 2, 0, 0),
        ((4, 8), 3, None, 4),  # not to 0, which is no longer there
    ],
)
def test_training_goes_back_to_a_checkpoint_that_was_good(
    anchors: tuple[int, ...], last_good: int, target: int | None, expected: int
) -> None:
    """From one that holds the damage, or that did not help before, it would only go wrong again."""
    assert Guard(last_good=last_good, target=target).target_of(anchors) == expected


def went_back(made: Sequence[Process]) -> list[tuple[int, int, list[int], float, int]]:
    return [
        (e["step"], e["to_step"], e["skipped"], e["rate_factor"], e["rollbacks"])
        for each in made
        for e in each.said("guard.rolled_back")
    ]


SINGLE = {"batch_size": 1, "grad_accumulation_steps": 1, "save_every": 4, "steps_per_eval": 10}


def test_after_five_in_a_row_training_goes_back_twice_and_ends_well(quick_path: Path) -> None:
    """A burst of bad rows costs some steps and half of the rate, not the run."""
    rows = spoiled_steps(rows_to_learn(36), SINGLE, [*range(10, 15), *range(22, 27)], NAN)
    made = process(quick_path, rows, **SINGLE)
    progress = made.go()
    assert went_back([made]) == [
        (15, 8, [11, 12, 13, 14, 15], 0.5, 1),
        (27, 20, [23, 24, 25, 26, 27], 0.25, 2),
    ]
    assert progress.step == 36
    assert progress.update == 26
    assert progress.guard.rollbacks == 2
    assert made.step.rate_factor == 0.25
    assert_finite(made)
    rates = [event["learning_rate"] for event in made.said("training.report")]
    assert rates[0] == pytest.approx(1e-2)
    assert rates[-1] == pytest.approx(0.25e-2)
    steps = [event["step"] for event in made.metrics]
    assert steps[:15] == list(range(1, 16))
    assert steps[15:17] == [9, 10]  # trained again, at the lower rate
    assert steps[17] == 16  # and past the rows that did it


def test_four_in_a_row_do_not_send_training_back(quick_path: Path) -> None:
    """Some bad rows are the data's; only more than chance allows is the weights'."""
    rows = spoiled_steps(rows_to_learn(24), SINGLE, [*range(5, 9), *range(10, 14)], NAN)
    made = process(quick_path, rows, **SINGLE)
    made.go()
    assert made.said("guard.rolled_back") == []
    assert [event["in_a_row"] for event in made.said("guard.dropped")] == [1, 2, 3, 4] * 2


@pytest.mark.parametrize("save_every", [1, 3, 4])
@pytest.mark.parametrize("first", [0, 10])
def test_whatever_the_checkpoints_there_is_always_one_to_go_back_to(
    quick_path: Path, save_every: int, first: int
) -> None:
    """Frequent checkpoints are made during the bad steps too, and must not push out the good ones."""
    keys = SINGLE | {"save_every": save_every}
    rows = spoiled_steps(rows_to_learn(24), keys, [*range(first, first + 5), *range(first + 6, first + 11)], NAN)
    made = process(quick_path, rows, **keys)
    progress = made.go()
    assert progress.step == 24
    assert progress.guard.rollbacks == 2
    assert all(to_step <= first for _, to_step, *_ in went_back([made])[:1])
    assert made.said("checkpoint.damaged") == []


@pytest.mark.parametrize("first", [0, 10])
def test_a_job_that_stays_broken_fails_at_the_third_time_with_advice(quick_path: Path, first: int) -> None:
    """Training on noise for hours helps nobody."""
    rows = spoiled_steps(rows_to_learn(40), SINGLE, range(first, 40), INFINITE)
    made = process(quick_path, rows, **SINGLE)
    with pytest.raises(TrainingFailed) as caught:
        made.go()
    assert [(event["rate_factor"], event["rollbacks"]) for event in made.said("guard.rolled_back")] == [
        (0.5, 1),
        (0.25, 2),  # also where the checkpoint is older than the first rollback
    ]
    assert f"micro-batches {first + 11} to {first + 15}" in str(caught.value.where)
    for word in ("learning_rate", "grad_clip", "rows", "mlx_lm.generate"):
        assert word in str(caught.value.remedy)
    assert_finite(made)
    # Started again, it fails again: from its checkpoints, and at once.
    again = process(quick_path, rows, **SINGLE)
    with pytest.raises(TrainingFailed):
        again.go()
    assert len(again.metrics) < 20


def test_the_lowered_rate_is_that_of_the_real_updates(quick_path: Path) -> None:
    """An event that says half while the optimizer goes on as before would be a lie."""
    keys = SINGLE | {"optimizer": "sgd", "lr_schedule": {"name": "linear_schedule", "arguments": [0.2, 0.1, 20.0]}}
    halved = SINGLE | {"optimizer": "sgd", "lr_schedule": {"name": "linear_schedule", "arguments": [0.1, 0.05, 20.0]}}
    rows = rows_to_learn(20)
    made = process(quick_path / "back", spoiled_steps(rows, SINGLE, range(5), NAN), **keys)
    made.go()
    assert went_back([made]) == [(5, 0, [1, 2, 3, 4, 5], 0.5, 1)]
    slow = process(quick_path / "slow", rows, **halved)
    before = slow.masters
    slow.loop.run(Progress(guard=Guard(skipped=tuple(range(5)))))
    left, right = ({name: value - before[name] for name, value in p.masters.items()} for p in (made, slow))
    assert_close(left, right, 1e-4)


# Stops and kills on the way


BURSTS = SINGLE | {"grad_accumulation_steps": 2, "epochs": 1.0}


@pytest.fixture(scope="module")
def bursts() -> list[Document]:
    """Rows that send training back twice, the second time while it passes over what the first one skipped."""
    return spoiled_steps(rows_to_learn(36), BURSTS, [*range(9, 14), *range(15, 20), 30], NAN)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, bursts: list[Document]) -> Process:
    made = process(tmp_path_factory.mktemp("undisturbed"), bursts, **BURSTS)
    assert made.go().guard.rollbacks == 2
    return made


def assert_ended_alike(made: Sequence[Process], undisturbed: Process) -> None:
    assert_same(made[-1].state, undisturbed.state)
    last = {event["step"]: event["loss"] for event in undisturbed.said("validation")}
    again = {event["step"]: event["loss"] for each in made for event in each.said("validation")}
    assert again == last


@pytest.mark.parametrize("stop_after", [2, 3, 5, 7])
def test_a_run_that_goes_back_can_be_stopped_anywhere(
    quick_path: Path, bursts: list[Document], undisturbed: Process, stop_after: int
) -> None:
    """Stopped again and again: before a rollback, between the two, and while rows are passed over."""
    made, progress = until_done(lambda _: process(quick_path, bursts, stop_after=stop_after, **BURSTS))
    assert len(made) > 3
    assert progress.guard.rollbacks == 2
    assert went_back(made) == went_back([undisturbed])
    assert_ended_alike(made, undisturbed)


class Killed(BaseException):
    """The process is gone at this point."""


@pytest.mark.parametrize("moment", range(1, 32, 5))
def test_a_run_that_goes_back_can_be_killed_at_any_change_of_its_checkpoints(
    quick_path: Path, bursts: list[Document], undisturbed: Process, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """A rollback removes checkpoints and writes one; in between there must always be a way on, and the same one."""
    calls = 0

    def dies(whole: Callable[..., Any]) -> Callable[..., Any]:
        def dying(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == moment:  # half of the moments are before the change, half after
                if moment % 2:
                    whole(*arguments)
                raise Killed
            return whole(*arguments)

        return dying

    monkeypatch.setattr(checkpoint, "save", dies(checkpoint.save))
    monkeypatch.setattr(checkpoint, "remove", dies(checkpoint.remove))
    first = process(quick_path, bursts, **BURSTS)
    with pytest.raises(Killed):
        first.go()
    second = process(quick_path, bursts, **BURSTS)
    second.go()
    assert_ended_alike([first, second], undisturbed)


def test_nothing_of_the_window_in_which_training_goes_back_is_left(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients from before a rollback belong to other weights: a process that was killed there has none of them."""
    keys = SINGLE | {"grad_accumulation_steps": 6, "save_every": 100}
    rows = spoiled_steps(rows_to_learn(24), keys, range(7, 12), NAN)  # the window's first is good
    made = process(quick_path / "through", rows, **keys)
    made.go()
    assert went_back([made]) == [(12, 0, [8, 9, 10, 11, 12], 0.5, 1)]
    whole = checkpoint.save

    def dies(*arguments: Any) -> Any:
        saved = whole(*arguments)
        if arguments[3]["progress"]["guard"]["rollbacks"]:
            raise Killed
        return saved

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", dies)
        with pytest.raises(Killed):
            process(quick_path / "killed", rows, **keys).go()
    second = process(quick_path / "killed", rows, **keys)
    second.go()
    assert_same(second.state, made.state)


def test_a_rollback_passes_over_a_damaged_checkpoint(quick_path: Path) -> None:
    """The one that it would go to may be the one that the disk lost."""
    rows = spoiled_steps(rows_to_learn(24), SINGLE, range(13, 18), NAN)
    made = process(quick_path, rows, stop_after=11, **SINGLE)
    made.go()
    assert (made.run.checkpoints / "step-000008").is_dir()
    second = process(quick_path, rows, stop_after=2, **SINGLE)
    second.go()
    file = made.run.checkpoints / "step-000012" / checkpoint.ARRAYS
    file.write_bytes(file.read_bytes()[:-8])
    third = process(quick_path, rows, **SINGLE)
    progress = third.go()
    assert went_back([third]) == [(18, 8, [14, 15, 16, 17, 18], 0.5, 1)]
    assert [Path(event["path"]).name for event in third.said("checkpoint.damaged")] == ["step-000012"]
    assert progress.step == 24
    assert_finite(third)


def test_without_a_whole_checkpoint_training_says_so(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Going on from weights that may be broken is worse than to stop."""
    rows = spoiled_steps(rows_to_learn(24), SINGLE, range(13, 18), NAN)
    made = process(quick_path, rows, stop_after=11, **SINGLE)
    made.go()
    second = process(quick_path, rows, **SINGLE)
    progress = second.begin()
    for state in made.run.checkpoints.glob(f"*/{checkpoint.STATE}"):
        state.write_bytes(b"")
    monkeypatch.setattr(checkpoint, "save", lambda folder, step, *_: checkpoint.Checkpoint(folder, step))
    with pytest.raises(TrainingFailed, match="none is whole") as caught:
        second.loop.run(progress)
    assert caught.value.remedy


def test_the_best_checkpoint_of_the_past_is_there_when_training_goes_back_to_it(quick_path: Path) -> None:
    """A newer best may push it out, and then be left behind itself."""
    made = process(quick_path, rows_to_learn(24), **SINGLE)
    progress = Progress()
    for step, best, by_count in ((0, 0, True), (6, 6, False), (8, 6, True), (12, 6, True), *_bests(13, 17)):
        progress = replace(progress, step=step, best_step=best, guard=Guard(last_good=step))
        progress = progress.after_save(by_count=by_count)
        made.checkpoints.save(progress, "count" if by_count else "best")
    made.checkpoints.settle()
    kept = {found.step for found in checkpoint.listed(made.run.checkpoints)}
    assert kept == {6, 8, 12, 14, 15, 16}
    back = made.checkpoints.roll_back(replace(progress, guard=Guard(last_good=16, dropped=(16, 17, 18, 19, 20))))
    assert (back.step, back.best_step) == (12, 6)
    assert made.checkpoints.take_best(back) == 6
    assert made.said("checkpoint.damaged") == []


def _bests(first: int, end: int) -> list[tuple[int, int, bool]]:
    return [(step, step, False) for step in range(first, end)]
