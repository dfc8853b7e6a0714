"""Of what people are told, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_daemon.notices import Notice, notice_of, text_of, title_of
from qlora_engine.job.events import Event

JOB = "20261123-080000-poems"


def event(name: str, **fields: Any) -> Event:
    return {"ts": "2026-11-23T08:00:00.000+00:00", "level": "info", "event": name, "job": JOB, **fields}


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (event("job.state", **{"from": "running", "to": "done", "reason": ""}), "done"),
        (event("job.state", **{"from": "running", "to": "failed", "reason": "memory"}), "failed"),
        (event("job.state", **{"from": "running", "to": "held", "reason": "max_runtime is over"}), "held"),
        (event("training.stalled", phase="train", step=5, seconds=312.0), "stalled"),
        (event("job.state", **{"from": "running", "to": "held", "reason": "held on request"}), None),
        (event("job.state", **{"from": "accepted", "to": "held", "reason": "held from the start · x"}), None),
        (event("job.state", **{"from": "queued", "to": "starting", "reason": ""}), None),
        (event("job.state", **{"from": "running", "to": "cancelled", "reason": ""}), None),
        (event("training.report", step=5, loss=1.0), None),
        ({"ts": "", "level": "info", "event": "daemon.started"}, None),
    ],
)
def test_what_ends_or_waits_for_a_person_is_told_but_not_what_a_person_has_asked_for(
    said: Event, kind: str | None
) -> None:
    """A phone that buzzes for every step is put away."""
    notice = notice_of(said)
    assert (notice.kind if notice else None) == kind


def test_a_message_has_the_last_numbers_of_the_loss_curve() -> None:
    """Whether the night was worth it should not need a terminal."""
    run = [event("training.report", step=step, loss=4.0 - step / 100) for step in range(10, 100, 10)]
    run += [
        event("validation", step=50, split="valid", loss=3.25),
        event("validation", step=50, split="test", loss=9.0),
    ]
    text = text_of(Notice(JOB, "done", ""), run)
    assert text.splitlines() == [
        f"{JOB} is done.",
        "Loss: 3.5 at step 50, 3.4 at step 60, 3.3 at step 70, 3.2 at step 80, 3.1 at step 90",
        "Validation loss: 3.25 at step 50",
        f"More: qlora show {JOB}",
    ]


@pytest.mark.parametrize("loss", [None, "high"])
def test_a_loss_that_is_no_number_is_none(loss: object) -> None:
    """Whoever is to hear that a run went to NaN must hear of it, and JSON has null for that."""
    run = [event("training.report", step=step, loss=value) for step, value in ((10, 2.5), (20, loss))]
    run.append(event("validation", step=20, split="valid", loss=loss))
    assert text_of(Notice(JOB, "failed", "NaN"), run).splitlines()[1:3] == [
        "Loss: 2.5 at step 10, none at step 20",
        "Validation loss: none at step 20",
    ]


def test_a_message_says_why_and_carries_nothing_that_a_terminal_obeys() -> None:
    """A job's name comes from a file that somebody has dropped."""
    text = text_of(Notice(JOB, "failed", "it \x1b[31mcrashed\x1b[0m\nthree times"), [])
    assert text.startswith(f"{JOB} is failed: it ")
    assert "\x1b" not in text + title_of(Notice(JOB, "failed", ""), "po\x1bems")
    stalled = notice_of(event("training.stalled", phase="train", seconds=312.0))
    assert stalled is not None
    assert "has stalled: no progress in phase train for 5 min" in text_of(stalled, [])
