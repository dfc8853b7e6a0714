"""When a training process counts as stalled: decisions from data alone."""

from __future__ import annotations

import pytest

from qlora_engine.job.pulse import PHASES, Heartbeat
from qlora_worker.watchdog import PATIENCE, Seen, allowed_seconds

FLOOR = 600.0


@pytest.mark.parametrize(
    ("phase", "gaps", "seconds"),
    [
        ("train", {}, 600),
        ("train", {"train": 2.0}, 600),
        ("train", {"train": 90.0}, 900),
        ("train", {"train": 9 * 3600.0}, 6 * 3600),
        ("train", {"load": 900.0}, 600),  # learned by phase
        ("validate", {}, 600),
        ("load", {}, 3600),
        ("load", {"load": 500.0}, 5000),
        ("compile", {}, 1800),
        ("start", {}, 1200),
    ],
)
def test_allowed_times(phase: str, gaps: dict[str, float], seconds: float) -> None:
    """Too short kills a healthy run of a large model again and again; too long loses a night to a hang."""
    assert allowed_seconds(Heartbeat(1, phase, gaps=gaps), FLOOR) == seconds


def test_only_known_phases_have_patience() -> None:
    """A name with a typing mistake would silently get the shortest time."""
    assert PATIENCE.keys() <= set(PHASES)


def watched(*looks: tuple[float, int | None], attempt: int = 1) -> Seen:
    """What is seen after looks at times and beats, each five seconds apart by plan."""
    seen = Seen(Heartbeat(1, "train"), 0.0, 0.0)
    for now, beats in looks:
        found = None if beats is None else Heartbeat(attempt, "train", step=beats, beats=beats)
        seen = seen.look(found, now, 5.0)
    return seen


def test_time_counts_while_nothing_beats() -> None:
    """The whole of the watchdog."""
    assert watched((5, 1), (10, 1), (15, 1)).waited == 10


def test_any_beat_begins_anew() -> None:
    """Slow is not stalled."""
    seen = watched((5, 1), (10, 1), (15, 2))
    assert (seen.waited, seen.heartbeat.step) == (0, 2)


def test_a_torn_or_missing_pulse_is_no_sign_of_life() -> None:
    """A process that never says anything would otherwise live for ever."""
    assert watched((5, None), (10, None)).waited == 10


def test_the_pulse_of_an_earlier_attempt_is_no_sign_of_life() -> None:
    """It lies there from before, and says nothing about this process."""
    seen = watched((5, 99), (10, 100), attempt=7)
    assert (seen.waited, seen.heartbeat.beats) == (10, 0)


def test_a_sleeping_machine_is_no_stall() -> None:
    """A laptop that was closed over night must find its training alive, not killed."""
    assert watched((5, 1), (8 * 3600, 1)).waited == 10
    assert watched((5, 1), (8 * 3600, 1), (8 * 3600 + 5, 2)).waited == 0


def test_looks_that_come_early_count_what_they_are() -> None:
    """A signal wakes the worker at any time."""
    assert watched((5, 1), (6, 1), (6.5, 1)).waited == 1.5
