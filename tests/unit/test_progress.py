"""How far a job is, told from its events."""

from __future__ import annotations

import pytest

from qlora_client.progress import Progress, after, progress_of
from qlora_engine.job.events import Event


def event(kind: str, attempt: int = 1, **fields: object) -> Event:
    return {"event": kind, "attempt": attempt, **fields}


def state(to: str) -> Event:
    return {"event": "job.state", "from": "?", "to": to, "reason": ""}


TRAINING = [
    state("running"),
    event("data.loaded", steps=80),
    event("phase.started", phase="validate"),
    event("validation", step=0, split="valid", loss=3.0),
    event("phase.ended", phase="validate", seconds=1.0),
    event("phase.started", phase="train"),
    event("training.step", step=3, steps=80, loss=2.5, seconds=2.0, tokens_per_second=100.0, memory_gb=1.0),
]


def test_a_report_gives_loss_and_time_left() -> None:
    """The bar's numbers are the report's means, not those of one micro-batch."""
    progress = progress_of(
        [*TRAINING, event("training.report", step=4, steps=80, loss=2.0, steps_per_second=0.5, peak_gb=1.5)]
    )
    assert (progress.step, progress.steps, progress.loss, progress.peak_gb) == (4, 80, 2.0, 1.5)
    assert progress.seconds_left == 76 / 0.5
    assert progress.phase == "train"


def test_before_the_first_report_a_micro_batch_gives_them() -> None:
    """A first report may be minutes away; the bar must show something before it."""
    progress = progress_of(TRAINING)
    assert progress.loss == 2.5
    assert progress.seconds_left == pytest.approx(77 * 2.0)


def test_the_last_micro_batch_of_an_earlier_attempt_is_passed_over() -> None:
    """A resumed job would seem further than it is: the metrics file still ends with the old attempt's line."""
    resumed = [*TRAINING, event("training.started", 2), event("training.resumed", 2, step=2)]
    assert progress_of(resumed).step == 2
    assert progress_of([*resumed, TRAINING[-1]]).step == 2
    assert progress_of([*resumed, event("training.step", 2, step=3, steps=80)]).step == 3


def test_a_report_that_is_read_late_does_not_go_back() -> None:
    """Events and micro-batches are two files, read one after the other."""
    progress = progress_of([*TRAINING, event("training.report", step=2, steps=80, loss=2.0)])
    assert progress.step == 3


AWAY = [
    *TRAINING,
    event("checkpoint.saved", step=20, why="count"),
    event("training.report", step=60, steps=80, loss=7.0, steps_per_second=0.5),
    event("validation", step=60, split="valid", loss=9.0),
    event("checkpoint.saved", step=60, why="count"),
    event("training.step", step=65, steps=80, ts="2026-11-23T08:00:05.000+00:00"),
]
ROLLED_BACK = event("guard.rolled_back", step=65, to_step=20, ts="2026-11-23T08:00:06.000+00:00")
RESTARTED = event("training.restarted", 2, step=60, changed=["data"], ts="2026-11-23T08:00:06.000+00:00")


def test_training_that_went_back_is_where_it_went() -> None:
    """It would seem to stand still until it is beyond where it was, and to end far too soon."""
    progress = progress_of([*AWAY, ROLLED_BACK])
    assert (progress.step, progress.checkpoint_step, progress.seconds_left) == (20, 20, 60 / 0.5)
    assert progress.loss is None, "it is of micro-batches that were given up"
    assert (progress.first_validation, progress.validation) == ((0, 3.0), (0, 3.0)), "so is that at step 60"
    further = after(progress, event("training.step", step=21, steps=80, loss=2.0))
    assert (further.step, further.loss, further.seconds_left) == (21, 2.0, 59 / 0.5)
    kept = progress_of([*AWAY, event("guard.rolled_back", step=65, to_step=60)])
    assert (kept.step, kept.validation) == (60, (60, 9.0))
    unknown = progress_of([*TRAINING[:3], event("validation", step=40, split="valid", loss=3.0), ROLLED_BACK])
    assert (unknown.first_validation, unknown.validation) == (None, None)


def test_training_that_starts_over_has_done_nothing() -> None:
    """With other data or settings, what was measured before says nothing of it."""
    resumed = event("training.resumed", step=2, exact=True, changed=[])
    progress = progress_of([*AWAY, resumed, event("data.loaded", 2, steps=90), RESTARTED])
    assert (progress.attempt, progress.step, progress.steps, progress.checkpoint_step) == (2, 0, 90, 0)
    assert progress.seconds_left is progress.loss is progress.tokens_per_second is progress.resumed is None
    assert progress.first_validation is progress.validation is None
    further = after(progress, event("training.step", 2, step=1, steps=90, loss=2.0, seconds=3.0))
    assert (further.step, further.seconds_left) == (1, 89 * 3.0)


@pytest.mark.parametrize("back", [ROLLED_BACK, RESTARTED | {"attempt": 1}])
def test_the_last_micro_batch_of_before_training_went_back_is_passed_over(back: Event) -> None:
    """It is the newest in its file until the next one is done, and is read after the event that it came before."""
    progress = progress_of([*AWAY, back])
    assert after(progress, AWAY[-1]) == progress
    later = event("training.step", step=21, steps=80, ts="2026-11-23T08:00:07.000+00:00")
    assert after(after(progress, AWAY[-1]), later).step == 21


def test_without_an_event_the_record_says_how_far_it_is() -> None:
    """And with one it does not: it is stored now and then, so that it may be of before training went back."""
    assert Progress().step_or(65) == 65
    assert progress_of([*AWAY, ROLLED_BACK]).step_or(65) == 20


def test_the_first_and_the_last_validation_are_kept() -> None:
    """The demo compares them; a test split must not count."""
    progress = progress_of(
        [
            *TRAINING,
            event("validation", step=40, split="valid", loss=1.5),
            event("validation", step=80, split="valid", loss=0.5),
            event("validation", step=80, split="test", loss=9.0),
        ]
    )
    assert progress.first_validation == (0, 3.0)
    assert progress.validation == (80, 0.5)


def test_a_stopped_attempt_leaves_no_phase_and_no_time_left() -> None:
    """A queued job does nothing, and when it ends nobody knows."""
    progress = progress_of([*TRAINING, state("queued")])
    assert progress.phase is None
    assert progress.seconds_left is None


def test_values_of_a_wrong_type_count_as_absent() -> None:
    """A damaged or newer events file must not end the view with an error."""
    strange = event("training.report", step="4", steps=None, loss={}, steps_per_second=0, tokens_per_second=True)
    assert after(Progress(step=2, steps=8), strange) == Progress(attempt=1, step=2, steps=8)
    assert after(Progress(), event("validation", split="valid", loss=None)).validation is None
    assert after(Progress(), {"event": "of.tomorrow"}) == Progress()


def test_a_failure_keeps_what_to_do() -> None:
    """`qlora show` must say why training failed and how to mend it."""
    failed = progress_of([*TRAINING, event("training.failed", what="No memory.", where=None, remedy="Use less.")])
    assert failed.trouble == ("No memory.", "", "Use less.")
