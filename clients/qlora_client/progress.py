"""How far a job is, told from its events: a pure function that every view of a job uses."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qlora_engine.job.events import Event


@dataclass(frozen=True)
class Progress:
    """What a job's events say of it so far.

    Attributes:
        state: the last state, as `job.state` named it.
        attempt: the newest attempt that has reported.
        reason: why it is in that state.
        phase: load, data, train, validate, save or test; None between them.
        step, steps: micro-batches done, of the whole run; 0 while unknown.
        loss: mean over the last report, nats.
        first_validation, validation: (step, loss) of the first and the last on the validation rows.
        memory_gb, peak_gb: 10^9 bytes.
        limit_gb: what training may use, or the device has where only that limits it; 10^9 bytes.
        pace: seconds a micro-batch takes.
        adapters: the result's folder, once it is there.
        resumed: the step that the newest attempt went on from, whether exactly, and what had changed.
        trouble: what the last failure of training was, and where and how to mend it.
        went_back: `ts` of the last event with which training went back to an earlier step; empty while there is none.
    """

    state: str = ""
    reason: str = ""
    attempt: int = 0
    phase: str | None = None
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None
    memory_gb: float | None = None
    peak_gb: float | None = None
    limit_gb: float | None = None
    pace: float | None = None
    first_validation: tuple[int, float] | None = None
    validation: tuple[int, float] | None = None
    checkpoint_step: int = 0
    adapters: str | None = None
    resumed: tuple[int, bool, str] | None = None
    trouble: tuple[str, str, str] | None = None
    went_back: str = ""

    @property
    def seconds_left(self) -> float | None:
        """Until the last micro-batch at this pace; None while it is unknown."""
        if self.pace is None or not self.steps:
            return None
        return self.pace * max(0, self.steps - self.step)

    def step_or(self, recorded: int) -> int:
        """The step, or that of the job's record where no event has told of one.

        A record is stored now and then: it may be further, of before training went back.
        """
        return self.step if self.steps else recorded


def progress_of(events: Iterable[Event]) -> Progress:
    """The progress after all of these events."""
    return functools.reduce(after, events, Progress())


def after(progress: Progress, event: Event) -> Progress:  # noqa: PLR0911, PLR0912  # one case a kind of event
    """The progress after one more event. Values of an unexpected type count as absent."""
    attempt = _whole(event.get("attempt")) or progress.attempt
    if attempt < progress.attempt:
        return progress  # the last micro-batch of an earlier attempt, which is still the newest in its file
    if attempt > progress.attempt:
        progress = replace(progress, attempt=attempt)
    match event["event"]:
        case "job.state":
            moved = replace(progress, state=str(event.get("to")), reason=str(event.get("reason") or ""))
            # What an ended attempt was doing says nothing of the next one.
            return moved if moved.state in ("running", "stopping") else replace(moved, phase=None, pace=None)
        case "phase.started":
            return replace(progress, phase=str(event.get("phase")))
        case "phase.ended":
            return replace(progress, phase=None)
        case "memory.limits":
            limit = _number(event.get("limit_gb")) or _number(event.get("device_gb"))
            return replace(progress, limit_gb=limit)
        case "data.loaded":
            return replace(progress, steps=_whole(event.get("steps")) or 0)
        case "training.resumed":
            step, changed = _whole(event.get("step")) or 0, event.get("changed") or ()
            # Of before it was said: a checkpoint that an older version went on from.
            resumed = (step, bool(event["exact"]), ", ".join(map(str, changed))) if "exact" in event else None
            return replace(progress, step=step, resumed=resumed)
        case "guard.rolled_back":
            return _after_rollback(progress, event)
        case "training.restarted":
            return _after_restart(progress, event)
        case "training.step":
            return _after_step(progress, event)
        case "training.report":
            return _after_report(progress, event)
        case "validation" if event.get("split") == "valid":
            return _after_validation(progress, event)
        case "checkpoint.saved":
            return replace(progress, checkpoint_step=_whole(event.get("step")) or 0)
        case "training.done" | "training.failed" | "fuse.failed":
            return _after_end(progress, event)
    return progress


def _after_end(progress: Progress, event: Event) -> Progress:
    if event["event"] == "training.done":
        folder = event.get("adapters")
        return replace(progress, phase=None, adapters=str(folder) if folder else None)
    what, where, remedy = (str(event.get(key) or "") for key in ("what", "where", "remedy"))
    return replace(progress, phase=None, trouble=(what, where, remedy))


def _after_rollback(progress: Progress, event: Event) -> Progress:
    step = _whole(event.get("to_step")) or 0
    first, last = progress.first_validation, progress.validation
    # Later numbers are of weights that were given up. Which validation before was the last is not known any more.
    first = first if first is not None and first[0] <= step else None
    last = last if last is not None and last[0] <= step else first
    return replace(
        progress,
        step=step,
        checkpoint_step=step,
        loss=None,
        first_validation=first,
        validation=last,
        went_back=str(event.get("ts") or ""),
    )


def _after_restart(progress: Progress, event: Event) -> Progress:
    # With other data or settings a micro-batch takes another time, too.
    return replace(
        progress,
        step=0,
        checkpoint_step=0,
        loss=None,
        tokens_per_second=None,
        pace=None,
        first_validation=None,
        validation=None,
        resumed=None,
        went_back=str(event.get("ts") or ""),
    )


def _after_step(progress: Progress, event: Event) -> Progress:
    said = event.get("ts")
    if progress.went_back and isinstance(said, str) and said <= progress.went_back:
        return progress  # of before training went back, and still the newest in its file
    seconds = _number(event.get("seconds"))
    # Steps vary with their length; a report's mean is better, so only its absence makes us use one.
    pace = progress.pace if progress.pace is not None else seconds
    loss = _number(event.get("loss")) if progress.loss is None else progress.loss
    return _measured(progress, event, loss=loss, pace=pace)


def _after_report(progress: Progress, event: Event) -> Progress:
    speed, loss = _number(event.get("steps_per_second")), _number(event.get("loss"))
    return _measured(progress, event, loss=loss, pace=1 / speed if speed else progress.pace)


def _measured(progress: Progress, event: Event, *, loss: float | None, pace: float | None) -> Progress:
    return replace(
        progress,
        # A report is read after the micro-batches that follow it where both files grew between two looks.
        step=max(_whole(event.get("step")) or 0, progress.step),
        steps=_whole(event.get("steps")) or progress.steps,
        loss=loss,
        pace=pace,
        tokens_per_second=_number(event.get("tokens_per_second")) or progress.tokens_per_second,
        memory_gb=_number(event.get("memory_gb")) or progress.memory_gb,
        peak_gb=_number(event.get("peak_gb")) or progress.peak_gb,
    )


def _after_validation(progress: Progress, event: Event) -> Progress:
    loss = _number(event.get("loss"))
    if loss is None:
        return progress
    found = (_whole(event.get("step")) or 0, loss)
    return replace(progress, validation=found, first_validation=progress.first_validation or found)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
