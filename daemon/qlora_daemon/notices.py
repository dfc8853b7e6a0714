"""What a message says, and of which events there is one: decisions from events and records alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qlora_engine.job.events import Event
from qlora_engine.job.states import State
from qlora_engine.job.text import duration, plain

# A person who has asked for it need not be told.
ASKED_FOR = ("held on request", "held from the start")
LAST = 5  # losses that are named


@dataclass(frozen=True)
class Notice:
    """An occasion for a message.

    Attributes:
        job: its id.
        kind: `done`, `failed`, `held` or `stalled`.
        reason: why, for a person; may be empty.
    """

    job: str
    kind: str
    reason: str


def notice_of(event: Event) -> Notice | None:
    """The occasion that an event is, if it is one."""
    job, name = event.get("job"), event["event"]
    if not isinstance(job, str):
        return None
    if name == "training.stalled":
        return Notice(job, "stalled", f"no progress in phase {event.get('phase')} for {_seconds(event)}")
    target, reason = event.get("to"), str(event.get("reason") or "")
    if name != "job.state" or target not in (State.DONE, State.FAILED, State.HELD):
        return None
    if target == State.HELD and reason.startswith(ASKED_FOR):
        return None
    return Notice(job, str(target), reason)


def title_of(notice: Notice, name: str) -> str:
    """The message's first line, which is all that a phone shows."""
    return plain(f"{name}: {notice.kind}", 100)


def text_of(notice: Notice, events: Iterable[Event]) -> str:
    """The message: why, and the last numbers of the loss curve.

    Args:
        events: of the run, oldest first.
    """
    training: list[tuple[object, object]] = []
    validation: list[tuple[object, object]] = []
    for event in events:
        if event["event"] == "training.report":
            training = [*training, (event.get("step"), event.get("loss"))][-LAST:]
        elif event["event"] == "validation" and event.get("split") == "valid":
            validation = [*validation, (event.get("step"), event.get("loss"))][-LAST:]
    ended = f"{notice.job} {'has' if notice.kind == 'stalled' else 'is'} {notice.kind}"
    lines = [f"{ended}: {notice.reason}" if notice.reason else f"{ended}."]
    lines += [_curve("Loss", training)] if training else []
    lines += [_curve("Validation loss", validation)] if validation else []
    lines.append(f"More: qlora show {notice.job}")
    return "\n".join(plain(line, 600) for line in lines)


def _curve(what: str, points: list[tuple[object, object]]) -> str:
    return f"{what}: " + ", ".join(f"{_number(loss)} at step {step}" for step, loss in points)


def _number(loss: object) -> str:
    return f"{loss:.4g}" if isinstance(loss, int | float) else "none"  # NaN is null in an event


def _seconds(event: Event) -> str:
    seconds = event.get("seconds")
    return duration(seconds) if isinstance(seconds, int | float) else "too long"
