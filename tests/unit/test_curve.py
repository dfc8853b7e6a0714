"""The curve of a run: bounded, whatever the run's length, and true to what stands of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from qlora_client import curve
from qlora_client.curve import MOST, Curve, CurveReader
from qlora_client.feed import RunFeed
from qlora_engine.job.events import Event
from qlora_engine.job.folder import RunFolder


def line(step: object, loss: object, **more: object) -> str:
    return json.dumps({"event": "training.step", "attempt": 1, "step": step, "loss": loss, **more}) + "\n"


def steps_of(found: Curve) -> list[float]:
    return [point.step for point in found.points()]


def test_a_long_run_stays_within_its_points() -> None:
    """A screen that is left open for a week would otherwise fill the memory."""
    found = Curve()
    for step in range(1, 100_001):
        found.add(step, step / 1000)
    points = found.points()
    assert MOST / 2 <= len(points) <= MOST
    assert steps_of(found) == sorted(steps_of(found))
    assert all(math.isclose(point.loss, point.step / 1000) for point in points)  # each mean lies where it belongs


def test_a_mean_counts_targets() -> None:
    """A loss is a mean over targets: a micro-batch with many of them says more."""
    found = Curve()
    for step in range(MOST + 1):
        found.add(step, loss=float(step % 2), weight=3.0 if step % 2 else 1.0)
    assert found.points()[0].loss == 0.75


def test_steps_that_are_done_again_replace_what_was_given_up() -> None:
    """After a crash a run goes on from its checkpoint; a curve that runs back would show two runs as one."""
    found = Curve()
    for step in (1, 2, 3, 4, 5):
        found.add(step, 9.0)
    for step in (3, 4):
        found.add(step, 1.0)
    assert [(point.step, point.loss) for point in found.points()] == [(1, 9.0), (2, 9.0), (3, 1.0), (4, 1.0)]


def test_a_curve_is_read_as_its_file_grows(tmp_path: Path) -> None:
    """Each look reads what is new, and a file that is not there yet is no error."""
    path = tmp_path / "metrics.jsonl"
    reader = CurveReader(path)
    assert reader.look() is None
    path.write_text(line(1, 3.0) + line(2, None) + line("3", 1.0) + line(4, 2.0) + '{"torn')
    newest = reader.look()
    assert newest is not None
    assert newest["step"] == 4
    assert steps_of(reader.curve) == [1, 4]
    assert reader.look() is None
    reader.close()


@pytest.mark.parametrize("count", [3000, 30_000])
def test_of_a_large_file_a_part_shows_the_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A hundred thousand micro-batches are forty megabytes; the first page must not wait for them."""
    monkeypatch.setattr(curve, "WHOLE", 100_000)
    monkeypatch.setattr(curve, "PLACES", 64)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line(step, 1 + step / count, tokens=100) for step in range(1, count + 1)))
    reader = CurveReader(path)
    reader.look()
    steps = steps_of(reader.curve)
    assert steps[0] < count / 20
    assert steps[-1] > count * 0.95
    assert all(math.isclose(point.loss, 1 + point.step / count, rel_tol=0.02) for point in reader.curve.points())
    with path.open("a") as file:
        file.write(line(count + 1, 0.5))
    newest = reader.look()
    assert newest is not None
    assert newest["step"] == count + 1
    reader.close()


def test_a_feed_tells_progress_and_curves_in_one_reading(tmp_path: Path) -> None:
    """`show`, `top` and `compare` must not differ in what they say of a run."""
    run = RunFolder(tmp_path)
    events = [
        {"event": "memory.limits", "limit_gb": None, "device_gb": 16.0},
        {"event": "validation", "split": "valid", "step": 0, "loss": 3.0},
        {"event": "validation", "split": "test", "step": 0, "loss": 9.0},
        *({"event": "training.report", "step": step, "steps": 90, "loss": 2.0} for step in range(10, 80, 10)),
    ]
    run.events.write_text("".join(json.dumps(event | {"attempt": 1}) + "\n" for event in events))
    run.metrics.write_text(line(71, 1.9, steps=90))
    feed = RunFeed(run)
    feed.look()
    feed.close()
    assert (feed.progress.step, feed.progress.steps, feed.progress.limit_gb) == (71, 90, 16.0)
    assert [point.loss for point in feed.validations.points()] == [3.0]
    assert [event["step"] for event in feed.reports] == [30, 40, 50, 60, 70]
    assert steps_of(feed.losses) == [71]


@pytest.mark.parametrize(
    ("back", "left"),
    [
        ({"event": "guard.rolled_back", "step": 50, "to_step": 20}, [0, 20]),
        ({"event": "training.restarted", "step": 40, "changed": ["data"]}, []),
    ],
)
def test_validations_that_training_gave_up_leave_the_curve(tmp_path: Path, back: Event, left: list[int]) -> None:
    """The next may be an hour away, and until then a curve would end in what training went back from."""
    run = RunFolder(tmp_path)
    events: list[Event] = [{"event": "validation", "split": "valid", "step": step, "loss": 3.0} for step in (0, 20, 40)]
    run.events.write_text("".join(json.dumps(event) + "\n" for event in [*events, back]))
    feed = RunFeed(run)
    feed.look()
    feed.close()
    assert steps_of(feed.validations) == left
