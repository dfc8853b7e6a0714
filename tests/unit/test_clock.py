"""How fast training says it is, which must be what a clock on the wall says of it."""

from __future__ import annotations

import pytest

from qlora_engine.training import clock as module
from qlora_engine.training.clock import Clock


class Wall:
    """A clock that is set by hand."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter


def test_all_time_is_training_that_nothing_else_was_named_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is begun early runs on while events are written: the time inside of batches alone would promise too much."""
    wall = Wall()
    monkeypatch.setattr(module, "time", wall)
    clock = Clock()
    wall.now += 2.0
    with clock.paused():  # a validation
        wall.now += 50.0
    wall.now += 1.0
    assert clock.lap() == pytest.approx(3.0)
    wall.now += 1.0  # events, the update
    wall.now += 4.0  # the next batch
    assert clock.lap() == pytest.approx(5.0)
    clock.count(tokens=160, steps=2, positions=200, filled=180)
    speed = clock.take()
    assert (speed.tokens, speed.steps, speed.padding) == pytest.approx((20.0, 0.25, 0.1))
    assert clock.take().tokens == 0


def test_the_time_since_a_checkpoint_goes_on_through_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill would cost counts validations, too."""
    wall = Wall()
    monkeypatch.setattr(module, "time", wall)
    clock = Clock()
    with clock.paused():
        wall.now += 120.0
    assert clock.minutes_since_save() == pytest.approx(2.0)
    clock.note_saved()
    assert clock.minutes_since_save() == 0
