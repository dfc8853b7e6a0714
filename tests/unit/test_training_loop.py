"""The training loop over real steps: every row once an epoch, whatever the layout and wherever it was stopped."""

from __future__ import annotations

import errno
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qlora_engine.training import tensor_file
from qlora_engine.training.dropout import step_key
from qlora_engine.training.ladder import Layout
from qlora_engine.training.results import StartedMicroBatch
from qlora_engine.training.targets import Targets
from support.rig import Process, document, numbered, until_done
from support.small import VOCABULARY, assert_close, assert_same

ROWS = 23  # divides by nothing


@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 1), (2, 3), (3, 2), (4, 4), (40, 2)])
@pytest.mark.parametrize(("length", "at_once"), [({"epochs": 2.0}, 99), ({"epochs": 2.0}, 1), ({"iters": 9}, 2)])
@pytest.mark.parametrize(("joined", "eager"), [(False, False), (True, False), (True, True)])
def test_every_row_is_applied_once_an_epoch(  # noqa: PLR0917  # they come by name
    quick_path: Path,
    length: dict[str, Any],
    batch_size: int,
    accumulation: int,
    at_once: int,
    joined: bool,
    eager: bool,
) -> None:
    """What nobody trains on, nobody learns; what comes twice is learned twice."""
    keys = {"batch_size": batch_size, "grad_accumulation_steps": accumulation, "save_every": 1000, "epochs": None}
    layout = Layout(recompute=False, rows=min(at_once, batch_size), longest=64)
    made = Process(quick_path, numbered(ROWS), layout=layout, joined=joined, eager=eager, keys=keys | length)
    progress = made.go()
    assert progress.update == made.loop.trainer.plan.updates
    per_epoch = -(-ROWS // batch_size)
    assert progress.step == (2 * per_epoch if "epochs" in length else 9)
    whole, rest = divmod(progress.step, per_epoch)
    applied = made.step.applied
    for epoch in range(whole):
        assert sorted(applied[epoch * ROWS : (epoch + 1) * ROWS]) == list(range(ROWS))
    left = applied[whole * ROWS :]
    assert len(left) == len(set(left)) == rest * batch_size
    assert progress.tokens == sum(made.train[row].targets for row in applied)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("stop_after", [1, 2, 4, 7])
def test_a_run_that_is_stopped_often_applies_every_row_once_an_epoch_too(
    quick_path: Path, stop_after: int, eager: bool
) -> None:
    """A window that a stop cuts is trained again whole, and no row of it counts before."""
    keys = {"grad_accumulation_steps": 3, "epochs": 2.0, "batch_size": 3}

    def process(number: int) -> Process:
        # A window has three micro-batches, so a stop after fewer would come for ever.
        after = stop_after if number % 2 == 0 else stop_after + 3
        return Process(quick_path, numbered(ROWS), valid=numbered(3, seed=1), stop_after=after, eager=eager, keys=keys)

    processes, progress = until_done(process)
    applied = [row for process in processes for row in process.step.applied]
    assert Counter(applied) == Counter(dict.fromkeys(range(ROWS), 2))
    assert len(processes) > 1
    assert sorted(applied[:ROWS]) == list(range(ROWS))
    through = Process(quick_path / "through", numbered(ROWS), valid=numbered(3, seed=1), keys=keys)
    assert through.go().tokens == progress.tokens
    assert_same(processes[-1].state, through.state)


def test_equal_rows_of_a_micro_batch_have_other_dropout_masks_in_every_layout(quick_path: Path) -> None:
    """Slices that shared a mask would drop the same units of each row, which a whole micro-batch does not."""
    rows = [document([1, 2, 3, 4, 5, 6])] * 6
    made = Process(quick_path, rows, layout=Layout(recompute=False, rows=1, longest=64), keys={"batch_size": 3})
    made.go()
    assert len(set(made.step.losses[:3])) == 3


def test_the_tail_of_an_epoch_is_applied_with_the_weight_that_it_has(quick_path: Path) -> None:
    """Its gradient is the mean over its own targets: not smaller for being short, and not left for the next epoch."""
    keys = {"batch_size": 2, "grad_accumulation_steps": 4, "optimizer": "sgd", "learning_rate": 1.0, "save_every": 1000}
    rows = numbered(9)  # windows of 8 rows and of 1
    made = Process(quick_path / "tail", rows, keys=keys)
    order = [row for window in made.loop.trainer.plan.windows(epoch=0, index=0, step=0) for row in window.micro_batches]
    assert [len(micro_batch) for micro_batch in order] == [2, 2, 2, 2, 1]
    first = Process(quick_path / "first", rows, keys=keys | {"epochs": None, "iters": 4})
    first.go()
    progress = made.go()
    assert progress.update == 2
    alone = Process(quick_path / "alone", rows, keys=keys | {"batch_size": 1, "grad_accumulation_steps": 1, "iters": 1})
    alone.step.restore(first.step.state())
    before = alone.masters
    # The tail's row in a batch of its own, with the masks of its step.
    rows = tuple((row,) for row in order[-1])
    trainer = alone.loop.trainer
    targets = trainer.packing.targets(alone.train, rows)
    alone.step.micro_batch(targets, step_key(alone.spec.seed, 4))
    alone.step.update()
    assert_close(
        {name: value - before[name] for name, value in made.masters.items()},
        {name: value - before[name] for name, value in alone.masters.items()},
    )


def test_a_stop_inside_a_validation_loses_neither_steps_nor_the_validation(quick_path: Path) -> None:
    """Validation can take longer than launchd waits."""
    rows, valid = numbered(ROWS), numbered(5, seed=1)
    through = Process(quick_path / "through", rows, valid=valid)
    through.go()

    class StopsInValidation(Process):
        seen = 0

        def __post_init__(self) -> None:
            super().__post_init__()
            whole = self.step.loss

            def loss(targets: Any) -> float:
                assert not self.stop.asked  # it waits for no more than the batch under way
                type(self).seen += 1
                if type(self).seen in (2, 4, 9):
                    self.stop.request("the test")
                return whole(targets)

            self.step.loss = loss  # type: ignore[method-assign]

    processes, _ = until_done(lambda _: StopsInValidation(quick_path / "stopped", rows, valid=valid))
    assert len(processes) == 4
    assert_same(processes[-1].state, through.state)

    def validations(of: list[Process]) -> list[tuple[int, float]]:
        return [(event["step"], event["loss"]) for process in of for event in process.said("validation")]

    assert validations(processes) == validations([through])


def test_reports_weigh_targets_and_come_as_often_as_asked(quick_path: Path) -> None:
    """A mean over micro-batches would not be the loss."""
    made = Process(quick_path, numbered(ROWS))
    made.go()
    steps = {event["step"]: event for event in made.metrics}
    assert list(steps) == list(range(1, 13))
    reports = made.said("training.report")
    assert [event["step"] for event in reports] == [3, 6, 9, 12]
    for report in reports:
        part = [steps[step] for step in range(report["step"] - 2, report["step"] + 1)]
        tokens = sum(event["tokens"] for event in part)
        assert report["loss"] == pytest.approx(sum(event["loss"] * event["tokens"] for event in part) / tokens)
    assert all(np.isfinite(event["gradient_norm"]) for event in reports)


def test_checkpoints_come_by_count_by_time_and_at_the_ends(quick_path: Path) -> None:
    """A crash costs no more than the time between two."""
    rows = numbered(ROWS)

    def why(**keys: Any) -> list[tuple[int, str]]:
        made = Process(quick_path / str(keys), rows, keys=keys)
        made.go()
        return [(event["step"], event["why"]) for event in made.said("checkpoint.saved")]

    assert why() == [(0, "start"), (4, "count"), (8, "count"), (12, "end")]
    assert why(save_every=5) == [(0, "start"), (6, "count"), (10, "count"), (12, "end")]  # at the window's end
    often = why(checkpoint_minutes=1e-6)
    assert often == [(0, "start"), (2, "time"), (4, "count"), (6, "time"), (8, "count"), (10, "time"), (12, "end")]


def test_the_last_three_checkpoints_stay_and_those_that_are_needed(quick_path: Path) -> None:
    """Disk is finite; the best and the two that a rollback may need stand beside the last three."""
    keys = {"epochs": 2.0, "save_every": 8, "steps_per_eval": 1000, "checkpoint_minutes": 1e-6}
    made = Process(quick_path, numbered(ROWS), valid=numbered(5, seed=1), keys=keys)
    progress = made.go()
    kept = sorted(int(path.name.removeprefix("step-")) for path in made.run.checkpoints.iterdir())
    assert progress.best_step == 24
    assert kept == [0, 8, 16, 20, 22, 24]  # 0 was the best at 8 and at 16


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("broken", ["none", "one row", "a stretch", "a high loss"])
def test_what_is_begun_early_changes_nothing(quick_path: Path, accumulation: int, broken: str) -> None:
    """Not a loss, not a bit of the weights, not the order of events; also where the guard drops and goes back."""
    keys = {
        "batch_size": 2, "grad_accumulation_steps": accumulation, "epochs": 2.0, "save_every": 3, "steps_per_eval": 4,
        "steps_per_report": 1,
    }  # fmt: skip
    rows = numbered(ROWS)
    plan = Process(quick_path / "plan", rows, keys=keys).loop.trainer.plan
    order = [batch for window in plan.windows(epoch=0, index=0, step=0) for batch in window.micro_batches]
    if broken == "a high loss":  # seen when the micro-batch has been computed
        keys["max_loss"] = 4.35
    for number in {"one row": order[2][:1], "a stretch": sum(order[3:9], ())}.get(broken, ()):
        rows[number].tokens[2] = VOCABULARY  # which is dropped before it is computed
    found = []
    for eager in (False, True):
        folder, valid = quick_path / str(eager), numbered(3, seed=1)
        made = Process(folder, rows, valid=valid, eager=eager, beside=False, keys=keys)
        progress = made.go()
        told = [(e["event"], e.get("step"), repr(e.get("loss")), e.get("value")) for e in (*made.events, *made.metrics)]
        found.append((repr(progress), made.state, told))
        dropped = {event["place"] for event in made.said("guard.dropped")}
        assert dropped == {"none": set(), "a high loss": {"loss"}}.get(broken, {"batch"})
        assert made.said("guard.rolled_back") or broken != "a stretch"
    assert found[1][0] == found[0][0]
    assert_same(found[1][1], found[0][1])
    assert found[1][2] == found[0][2]


@pytest.mark.parametrize("eager", [False, True])
def test_the_next_micro_batch_is_begun_before_the_one_before_is_read(quick_path: Path, eager: bool) -> None:
    """A GPU that waits until a loss is read waits at every step."""
    made = Process(quick_path, numbered(6), eager=eager, keys={"batch_size": 1, "grad_accumulation_steps": 1})
    read: list[int] = []
    start = made.step.start

    def starts(targets: Targets, key: Any) -> StartedMicroBatch:
        read.append(len(made.metrics))
        return start(targets, key)

    made.step.start = starts  # type: ignore[method-assign]
    assert made.go().step == 6
    assert read == ([0, 0, 1, 2, 3, 4] if eager else [0, 1, 2, 3, 4, 5])


def test_a_checkpoint_beside_training_is_the_one_that_training_waited_for(quick_path: Path) -> None:
    """It holds the weights of its step, however far training has gone on when they are written."""
    keys = {"save_every": 2, "keep": "last"}
    found = []
    for beside in (False, True):
        made = Process(quick_path / str(beside), numbered(ROWS), beside=beside, keys=keys)
        made.go()
        saved = sorted((event["step"], event["why"]) for event in made.said("checkpoint.saved"))
        files = {
            file.relative_to(made.run.path): file.read_bytes()
            for folder in (made.run.checkpoints, made.run.adapters)
            for file in folder.rglob("*.safetensors")
        }
        assert len(files) == 4
        found.append((saved, files))
    assert found[0] == found[1]


def test_a_disk_that_is_full_ends_training_though_it_did_not_wait(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run could come to its end with checkpoints that are hours old."""

    def full(path: Path, arrays: Any, metadata: Any = None) -> str:
        if "step-000004" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(path, arrays, metadata)

    whole = tensor_file.write
    monkeypatch.setattr(tensor_file, "write", full)
    made = Process(quick_path, numbered(ROWS))
    with pytest.raises(OSError, match="No space"):
        made.go()
    assert [event["step"] for event in made.said("checkpoint.saved")] == [0]
    assert [path.name for path in made.run.checkpoints.iterdir()] == ["step-000000"]
