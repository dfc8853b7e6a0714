"""A view as the lines of a terminal: the running job first; its curve has the room that the rest leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

from qlora_client.chart import LEAST_HEIGHT, Series, bar, chart
from qlora_client.lines import state_style, styled_line
from qlora_client.listing import NO_JOBS, Summary
from qlora_client.progress import Progress
from qlora_client.top.look import View
from qlora_engine.job.states import ACTIVE, State
from qlora_engine.job.text import duration, local_time, plain

_SHARE = 4  # queue and events may take a fourth of the free lines each, before the curve gets its room
_MOST_CURVE = 16  # lines; a higher one shows no more
_MOST_TROUBLES = 3
_BAR = 24  # cells
_ROOMY = 40  # lines; from there on the parts are set apart
_SNAPSHOT = 44  # lines, where no terminal says how many there are
# In which jobs are counted, the active ones first; `newer` are those that a newer qlorad has made.
_STATES = (*(state for state in State if state in ACTIVE), *(state for state in State if state not in ACTIVE), "newer")


@dataclass(frozen=True)
class Room:
    """The terminal that a page is for.

    Attributes:
        width: in columns.
        height: in lines; None for a page that is printed once, as long as it is.
        dots: whether it can show more than ASCII.
    """

    width: int
    height: int | None = None
    dots: bool = True


def page(view: View, room: Room) -> list[Text]:
    """The screen from top to bottom; exactly as many lines as there are, where that is known."""
    head = [*_head(view, room), Text(), *_job(view, room)]
    foot = [Text("q quits", style="dim")] if room.height else []
    free = (room.height or _SNAPSHOT) - len(head) - len(foot)
    gap = [Text()] if free > _ROOMY - len(head) else []
    queue = _queue(view, room, max(1, free // _SHARE))
    events_least = max(2, free // _SHARE)
    curve = _curve(view, room, min(_MOST_CURVE, free - len(queue) - events_least - 1 - 3 * len(gap)))
    parts = [*curve, *(gap if curve else []), *queue, *gap]
    body = [*parts, *_events(view, free - len(parts))]
    if room.height is None:
        return [*head, *body]
    return [*(head + body + [Text()] * free)[: room.height - len(foot)], *foot]


def _head(view: View, room: Room) -> Iterator[Text]:
    line = Text().append("qlorad", style="bold")
    if view.service.started is not None:
        line.append(f"  runs since {duration((view.now - view.service.started).total_seconds())}")
    counts = [f"{view.counts[state]:,} {state}" for state in _STATES if view.counts.get(state)]
    line.append(f"   {' · '.join(counts) or 'no jobs yet'}")
    clock = local_time(view.now)
    line.truncate(room.width - len(clock) - 1, overflow="ellipsis")
    yield line.append(f"{clock:>{room.width - line.cell_len}}", style="dim")
    for trouble in view.service.troubles[:_MOST_TROUBLES]:
        yield Text(plain(trouble), style="yellow")


def _job(view: View, room: Room) -> Iterator[Text]:
    job, now = view.active, view.progress
    if job is None:
        yield from _nothing_trains(view)
        return
    title = Text().append(plain(job.id, 120), style="bold").append(f"  {job.state}", style=state_style(job.state))
    if now.phase:
        title.append(f"  {plain(now.phase, 30)}", style="dim")
    yield title
    if job.record.get("kind") != "fuse":  # that has neither steps nor losses
        yield _steps(job, now, room)
        yield Text(_losses(now))
    if now.memory_gb is not None:
        yield _memory(now, room)


def _nothing_trains(view: View) -> Iterator[Text]:
    yield Text("Nothing trains." if view.counts else NO_JOBS)
    if view.ended is not None:
        line = Text().append("last ended: ", style="dim").append(plain(view.ended.id, 120))
        line.append(f"  {view.ended.state}", style=state_style(view.ended.state))
        yield line.append(f"  {plain(view.ended.reason, 200)}" if view.ended.reason else "")


def _steps(job: Summary, now: Progress, room: Room) -> Text:
    step, steps = now.step_or(job.step), now.steps or job.steps
    if not steps:
        return Text("before its first micro-batch", style="dim")
    line = bar(step / steps, _BAR, dots=room.dots).append(f" {step / steps:4.0%}", style="bold")
    line.append(f"  step {step:,} of {steps:,}")
    return line.append(f" · {duration(now.seconds_left)} left") if now.seconds_left is not None else line


def _losses(now: Progress) -> str:
    parts = []
    if now.loss is not None:
        parts.append(f"loss {now.loss:.3f}")
    if now.validation is not None and now.first_validation is not None:
        (_, first), (step, last) = now.first_validation, now.validation
        parts.append(f"validation {last:.3f} at step {step:,}" + (f", {first:.3f} at first" if step else ""))
    if now.tokens_per_second is not None:
        parts.append(f"{now.tokens_per_second:,.0f} tokens/s")
    return " · ".join(parts)


def _memory(now: Progress, room: Room) -> Text:
    used, limit = now.memory_gb or 0.0, now.limit_gb
    line = bar(used / limit, _BAR, dots=room.dots).append(f" {used / limit:4.0%}  ") if limit else Text()
    line.append(f"{used:.2f}{f' of {limit:.1f}' if limit else ''} GB of memory")
    return line.append(f", at most {now.peak_gb:.2f}") if now.peak_gb is not None else line


def _curve(view: View, room: Room, height: int) -> list[Text]:
    if height < LEAST_HEIGHT or view.active is None:
        return []
    series = [Series(view.losses, "cyan"), Series(view.validations, "yellow", "o", joined=False)]
    steps = view.progress.steps or view.active.steps
    return chart(series, room.width, height, steps=steps, dots=room.dots)


def _queue(view: View, room: Room, most: int) -> list[Text]:
    if not view.waiting:
        return [Text("Queue: empty", style="dim")]
    shown = view.waiting[:most]
    heading = Text().append("Queue", style="bold")
    if view.waits > len(shown):
        heading.append(f"  the first {len(shown)} of {view.waits:,}", style="dim")
    return [heading, *_waiting(shown, room)]


def _waiting(jobs: Sequence[Summary], room: Room) -> Iterator[Text]:
    names = min(max(len(job.id) for job in jobs), room.width // 2)
    for turn, job in enumerate(jobs, 1):
        number = str(turn) if job.state == State.QUEUED else "–" if room.dots else "-"
        place = " ".join([*(["urgent"] if job.urgent else []), *([f"{job.priority:+}"] if job.priority else [])])
        line = Text().append(f"{number:>3}  ", style="dim").append(f"{plain(job.id, names):<{names}}")
        line.append(f"  {job.state:<8}", style=state_style(job.state))
        why = plain(job.reason, 200) or ("next" if number == "1" else "")
        yield line.append(f"  {place}{'  ' if place else ''}{why}")


def _events(view: View, lines: int) -> list[Text]:
    if lines < 2 or not view.events:
        return []
    newest = view.events[-(lines - 1) :]
    return [Text("Events", style="bold"), *(styled_line(event, with_job=True, short=True) for event in newest)]
