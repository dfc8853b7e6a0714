"""The ladder: each step down needs less memory and teaches the same, and it ends in a clear error."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.job import durable
from qlora_engine.job.errors import OutOfMemory
from qlora_engine.job.events import Event, EventLog
from qlora_engine.job.exits import ExitRecord
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.formats import NewerFormat
from qlora_engine.job.pulse import Pulse
from qlora_engine.job.spec import JobSpec
from qlora_engine.training.ladder import Ladder, Layout, next_rung
from support.rig import Process, numbered, small_model
from support.small import assert_close, llama_model, with_adapters

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def rungs(spec: JobSpec) -> list[tuple[str, bool, int, int]]:
    """Every step down, to the end."""
    layout, taken = Layout.of(spec), []
    while rung := next_rung(layout, spec):
        layout = rung.layout
        taken.append((rung.name, layout.recompute, layout.rows, layout.longest))
        assert rung.change
    return taken


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"batch_size": 1}, [("recompute", True, 1, 2048)]),
        (
            {"batch_size": 4},
            [("recompute", True, 4, 2048), ("split", True, 2, 2048), ("split", True, 1, 2048)],
        ),
        (
            {"batch_size": 5, "grad_checkpoint": True},
            [("split", True, 2, 2048), ("split", True, 1, 2048)],
        ),
        (
            {"batch_size": 2, "max_seq_length": 600, "on_out_of_memory": "truncate"},
            [
                ("recompute", True, 2, 600),
                ("split", True, 1, 600),
                ("truncate", True, 1, 300),
                ("truncate", True, 1, 150),
                ("truncate", True, 1, 128),
            ],
        ),
        ({"batch_size": 1, "grad_checkpoint": True}, []),
        ({"batch_size": 1, "max_seq_length": 64, "grad_checkpoint": True, "on_out_of_memory": "truncate"}, []),
        ({"batch_size": 4, "on_out_of_memory": "fail"}, []),
    ],
)
def test_the_ladder_goes_down_to_where_the_job_allows(keys: dict[str, Any], expected: list[Any]) -> None:
    """Sequences are cut only for who asked for it, since that changes what is learned; and it comes to an end."""
    assert rungs(JobSpec(**keys)) == expected


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("recompute", [False, True])
def test_no_layout_changes_what_is_learned(quick_path: Path, recompute: bool, rows: int) -> None:
    """The effective batch stays: a job that ran out of memory ends with the adapters that it would have had."""

    def run(name: str, layout: Layout) -> Process:
        made = Process(
            quick_path / name,
            numbered(17),
            make=lambda _: with_adapters(llama_model(layers=2, hidden=16)),
            layout=layout,
            keys={"optimizer": "sgd", "learning_rate": 0.05, "batch_size": 5},
        )
        assert made.go().update == 2
        return made

    plain = run("plain", Layout(False, 5, 64))
    other = run("other", Layout(recompute, rows, 64))
    assert_close(other.masters, plain.masters)
    assert [event["loss"] for event in other.metrics] == pytest.approx([e["loss"] for e in plain.metrics], rel=1e-5)


class Folder:
    """A run folder and what an attempt's ladder says there."""

    def __init__(self, path: Path, **keys: Any) -> None:
        self.run, self.spec = RunFolder(path), JobSpec(**keys)
        self.events: list[Event] = []

    def ladder(self, attempt: int, **keys: Any) -> Ladder:
        spec = self.spec.model_copy(update=keys)
        return Ladder(self.run, spec, attempt, EventLog([self.events.append]))

    def ended(self, attempt: int, memory: str | None, phase: str = "train") -> None:
        """What an attempt's worker and pulse left."""
        record = ExitRecord.of(-9, attempt=attempt, started=NOW, ended=NOW, memory=memory)
        record.store(self.run.exit(attempt))
        pulse = Pulse(self.run.pulse, attempt)
        pulse.enter(phase)

    @property
    def rungs(self) -> list[str]:
        return [event["rung"] for event in self.events]


def test_an_attempt_heeds_how_the_one_before_it_ended(tmp_path: Path) -> None:
    """The system kills a process without an exception; only its worker saw why."""
    folder = Folder(tmp_path, batch_size=2, grad_accumulation_steps=3)
    folder.ended(1, memory="SIGKILL while the system's out-of-memory counter rose")
    second = folder.ladder(2)
    second.heed_last_attempt()
    assert second.layout == Layout(True, 2, 2048)
    event = folder.events[-1]
    assert (event["event"], event["rung"], event["effective_batch"]) == ("ladder.rung", "recompute", 6)
    assert "out-of-memory counter" in event["reason"]
    folder.ended(2, memory="again")
    third = folder.ladder(3)
    assert third.layout == second.layout  # kept in the folder
    third.heed_last_attempt()
    assert third.layout == Layout(True, 1, 2048)
    assert folder.rungs == ["recompute", "split"]
    assert third.as_json()["rungs"] == ["recompute", "split"]


DAMAGED = [b"", b'{"format": 1, "layout": {"rec', b"\xff\xfe", b"[]", b"{}", b"null"]


@pytest.mark.parametrize("content", DAMAGED)
def test_an_end_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    """The daemon takes it so, too, and lets the job go on: its next attempt must not fail for it."""
    folder = Folder(tmp_path, batch_size=8)
    folder.run.exit(1).write_bytes(content)
    ladder = folder.ladder(2)
    ladder.heed_last_attempt()
    assert ladder.layout == Layout(False, 8, 2048)


@pytest.mark.parametrize("content", DAMAGED)
def test_rungs_that_cannot_be_read_are_taken_again(tmp_path: Path, content: bytes) -> None:
    """Checkpoints and all else are there: a damaged record of rungs must not end the job."""
    folder = Folder(tmp_path, batch_size=8)
    folder.ladder(1).step_down("x", "train")
    folder.run.ladder.write_bytes(content)
    ladder = folder.ladder(2)
    assert ladder.layout == Layout(False, 8, 2048)
    assert [event["event"] for event in folder.events] == ["ladder.rung", "ladder.damaged"]
    assert folder.events[-1]["path"] == str(folder.run.ladder)
    ladder.step_down("y", "train")
    assert folder.ladder(3).layout == Layout(True, 8, 2048)
    newer = json.loads(folder.run.ladder.read_bytes()) | {"format": 99}
    durable.write_json(folder.run.ladder, newer)
    with pytest.raises(NewerFormat):
        folder.ladder(4)


def test_a_step_down_is_taken_once_for_each_end(tmp_path: Path) -> None:
    """An attempt that is stopped before it trains starts again with the same record before it."""
    folder = Folder(tmp_path, batch_size=8)
    folder.ended(1, memory="x")
    for _ in range(3):
        folder.ladder(2).heed_last_attempt()
    assert folder.rungs == ["recompute"]
    # An attempt that stepped down by itself and was then killed for want of memory, too, is one.
    folder.ladder(2).step_down("[malloc] Unable to allocate", "train")
    folder.ended(2, memory="also seen by the worker")
    folder.ladder(3).heed_last_attempt()
    assert folder.rungs == ["recompute", "split"]


@pytest.mark.parametrize("attempt", [0, 1, 2, 5])
def test_other_ends_change_nothing(tmp_path: Path, attempt: int) -> None:
    """A crash of another kind, a stop, a first attempt, the foreground: the layout is the job's."""
    folder = Folder(tmp_path, batch_size=8)
    folder.ended(1, memory=None)
    folder.ended(3, memory="not the one before")
    ladder = folder.ladder(attempt)
    ladder.heed_last_attempt()
    assert ladder.layout == Layout(False, 8, 2048)
    assert folder.rungs == []
    assert not folder.run.ladder.exists()


@pytest.mark.parametrize("phase", ["start", "load", "data"])
def test_what_ran_out_of_memory_before_training_fails_at_once(tmp_path: Path, phase: str) -> None:
    """No layout makes a model smaller: going down the ladder would only load it again and again."""
    folder = Folder(tmp_path, batch_size=8)
    folder.ended(1, memory="SIGKILL", phase=phase)
    with pytest.raises(OutOfMemory, match="loading") as caught:
        folder.ladder(2).heed_last_attempt()
    assert phase in str(caught.value.where)
    assert "smaller model" in str(caught.value.remedy)
    with pytest.raises(OutOfMemory):
        folder.ladder(1).step_down("Unable to allocate", phase)
    assert folder.rungs == []


@pytest.mark.parametrize("phase", ["compile", "train", "validate", "save", "sample", "test"])
def test_what_ran_out_of_memory_later_steps_down(tmp_path: Path, phase: str) -> None:
    """Every one of these phases computes with the layout."""
    folder = Folder(tmp_path)
    folder.ended(1, memory="SIGKILL", phase=phase)
    folder.ladder(2).heed_last_attempt()
    assert folder.rungs == ["recompute"]


@pytest.mark.parametrize("keys", [{"batch_size": 1, "grad_checkpoint": True}, {"on_out_of_memory": "fail"}])
def test_a_ladder_that_has_no_rung_left_fails_with_what_to_try(tmp_path: Path, keys: dict[str, Any]) -> None:
    """Otherwise a job that does not fit would start for ever."""
    folder = Folder(tmp_path, **keys)
    folder.ended(1, memory="SIGKILL")
    with pytest.raises(OutOfMemory) as caught:
        folder.ladder(2).heed_last_attempt()
    for word in ("smaller model", "num_layers", "max_seq_length", "limit_gb"):
        assert word in str(caught.value.remedy)


def test_a_ladder_always_comes_to_its_end(tmp_path: Path) -> None:
    """However many attempts run out of memory, the job is done with or without them."""
    folder = Folder(tmp_path, batch_size=64, max_seq_length=4096, on_out_of_memory="truncate")
    layouts: list[Layout] = []

    def attempts() -> None:
        for attempt in range(2, 100):
            folder.ended(attempt - 1, memory="SIGKILL")
            ladder = folder.ladder(attempt)
            ladder.heed_last_attempt()
            layouts.append(ladder.layout)

    with pytest.raises(OutOfMemory):
        attempts()
    assert len(set(layouts)) == len(layouts) == 1 + 6 + 5
    assert layouts[-1] == Layout(True, 1, 128)
    sizes = [(layout.recompute, layout.rows, layout.longest) for layout in layouts]
    assert all(before[1:] >= after[1:] for before, after in pairwise(sizes))


def test_a_layout_that_was_found_is_never_larger_than_the_job_asks_for_now(tmp_path: Path) -> None:
    """With `on_change: restart` a person may make a job smaller by hand; the folder must not undo that."""
    folder = Folder(tmp_path, batch_size=8, max_seq_length=2048)
    folder.ladder(1).step_down("x", "train")
    assert folder.ladder(2).layout == Layout(True, 8, 2048)
    assert folder.ladder(2, batch_size=2, max_seq_length=512).layout == Layout(True, 2, 512)
    kept = json.loads(folder.run.ladder.read_bytes())
    durable.write_json(folder.run.ladder, kept | {"layout": kept["layout"] | {"recompute": False}})
    assert folder.ladder(2, grad_checkpoint=True).layout.recompute


def test_a_run_goes_on_in_a_smaller_layout_with_the_same_rows_and_updates(quick_path: Path) -> None:
    """From its checkpoint, in the middle: not from the start, and with every row still once an epoch."""
    rows = numbered(17)
    keys = {"batch_size": 4, "grad_accumulation_steps": 1, "epochs": 2.0}
    through = Process(quick_path / "through", rows, make=small_model, keys=keys)
    whole = through.go()
    first = Process(quick_path / "run", rows, stop_after=3, attempt=1, keys=keys)
    first.go()
    first.ladder.step_down("[malloc] Unable to allocate", "train")
    second = Process(quick_path / "run", rows, stop_after=4, attempt=2, keys=keys)
    second.go()
    second.ladder.step_down("[malloc] Unable to allocate", "train")
    third = Process(quick_path / "run", rows, attempt=3, keys=keys)
    assert (second.loop.trainer.layout.recompute, second.loop.trainer.layout.rows) == (True, 4)
    assert (third.loop.trainer.layout.recompute, third.loop.trainer.layout.rows) == (True, 2)
    progress = third.go()
    assert (progress.step, progress.update, progress.tokens) == (whole.step, whole.update, whole.tokens)
    applied = [row for made in (first, second, third) for row in made.step.applied]
    assert sorted(applied) == sorted([*range(17), *range(17)])
    assert third.said("training.resumed")
