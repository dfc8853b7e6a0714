"""The head of a report: how a run ended, and its numbers in brief."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np

from qlora_engine.job.events import Event
from qlora_engine.job.text import duration, local_time
from qlora_engine.report.read import RunData, number, table
from qlora_engine.report.series import smoothed

ENDINGS = {"training.done": "done", "training.stopped": "stopped", "training.failed": "failed"}
FINAL = ("done", "failed", "cancelled")
WEIGHTS = "adapters.safetensors"


@dataclass(frozen=True)
class Figure:
    """One number in the head of the page, with what it is and what belongs to it."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Summary:
    """How a run stands.

    Attributes:
        state: done, stopped, failed, cancelled, ended (without a word) or running.
        when: the time of that.
        reason: why, one or more lines.
        command: what generates with the result; empty while there is none.
    """

    name: str
    state: str
    when: str
    reason: str
    model: str
    figures: list[Figure]
    adapters: str
    command: str


def summarize(data: RunData) -> Summary:
    """The summary of a run."""
    state, when, reason = _state(data)
    model = str(data.job.get("model_path") or data.spec.get("model") or "unknown model")
    adapters = data.run.adapters if (data.run.adapters / WEIGHTS).is_file() else None
    figures = (*_losses(data), _test(data), _steps(data), _time(data), _speed(data), _memory(data))
    return Summary(
        name=str(data.spec.get("name") or data.record.get("name") or data.run.id),
        state=state,
        when=local_time(when, date=True) if when else "",
        reason=reason,
        model=str(data.spec.get("model") or model),
        figures=[figure for figure in figures if figure is not None],
        adapters=str(adapters or ""),
        command=_command(model, str(adapters)) if adapters else "",
    )


def _state(data: RunData) -> tuple[str, Any, str]:
    """State, time and reason: the training process's own word, then the record's, then how the process ended."""
    started = [index for index, event in enumerate(data.events) if event["event"] == "training.started"]
    attempt = data.events[started[-1] :] if started else data.events
    ends = [event for event in attempt if event["event"] in ENDINGS]
    if ends and ends[-1]["event"] == "training.done":
        return "done", ends[-1].get("ts"), ""
    if data.record.get("state") in FINAL:
        return str(data.record["state"]), data.record.get("changed"), _why(ends) or str(data.record.get("reason", ""))
    if ends:
        return ENDINGS[ends[-1]["event"]], ends[-1].get("ts"), _why(ends)
    number_of_attempt = attempt[0].get("attempt") if attempt else None
    ended = data.exits.get(number_of_attempt) if isinstance(number_of_attempt, int) else None
    if ended:
        how = ended.get("signal") or f"code {ended.get('code')}"
        return "ended", ended.get("ended"), f"The training process ended without a word: {how}."
    return ("running", data.events[-1].get("ts"), "") if data.events else ("not started", None, "")


def _why(ends: list[Event]) -> str:
    if not ends or ends[-1]["event"] != "training.failed":
        return ""
    failed = ends[-1]
    return "\n".join(str(failed[key]) for key in ("what", "where", "remedy") if failed.get(key))


def _losses(data: RunData) -> list[Figure]:
    """Loss and perplexity, before → after; those of training where nothing was held out."""
    done = data.last("training.done")
    valid = [event for event in data.of("validation") if event.get("split") == "valid"]
    found = table(valid, ("step", "loss"))["loss"]
    found = found[np.isfinite(found)]
    name, before, after = "validation", number(done.get("loss_before")), number(done.get("loss_after"))
    if len(found):
        before, after = (before if math.isfinite(before) else found[0]), (after if math.isfinite(after) else found[-1])
    if not math.isfinite(before) and not math.isfinite(after):
        columns = data.micro_batches
        curve = smoothed(columns["step"], columns["loss"], columns["tokens"]).mean
        if not len(curve):
            return []
        name, before, after = "training", float(curve[0]), float(curve[-1])
    step = number(done.get("kept_step"))
    kept = f"kept: {done.get('kept')}, step {step:,.0f}" if math.isfinite(step) else ""
    return [
        Figure(f"{name} loss", f"{_fixed(before)} → {_fixed(after)}", kept),
        Figure("perplexity", f"{_perplexity(before)} → {_perplexity(after)}", f"of {name}"),
    ]


def _perplexity(loss: float) -> str:
    if not math.isfinite(loss):
        return "–"
    value = math.exp(min(loss, 700.0))
    return f"{value:,.2f}" if value < 1e4 else f"{value:.1e}"


def _test(data: RunData) -> Figure | None:
    tested = next((event for event in reversed(data.of("validation")) if event.get("split") == "test"), None)
    if tested is None:
        return None
    return Figure(
        "test loss", _fixed(number(tested.get("loss"))), f"perplexity {_fixed(number(tested.get('perplexity')))}"
    )


def _steps(data: RunData) -> Figure | None:
    newest = next((event for event in reversed(data.events) if event["event"] == "training.report"), {})
    steps, total = number(newest.get("step")), number(newest.get("steps"))
    if not math.isfinite(steps):
        return None
    return Figure("steps", f"{steps:,.0f} of {total:,.0f}", f"{number(newest.get('update')):,.0f} updates")


def _time(data: RunData) -> Figure | None:
    seconds = trained_seconds(data)
    attempts = len(data.of("training.started"))
    return Figure("time", duration(seconds), f"in {attempts} attempts" if attempts > 1 else "") if seconds else None


def trained_seconds(data: RunData) -> float:
    """The time of all attempts together, without what lies between them."""
    pairs = (pair for attempt in _attempts(data.events) for pair in pairwise(attempt))
    return sum(max(0.0, _seconds_between(before.get("ts"), event.get("ts"))) for before, event in pairs)


def _attempts(events: Iterable[Event]) -> list[list[Event]]:
    """The events of each attempt, from its `training.started` to its end or the last that is known of it."""
    found: list[list[Event]] = []
    under_way = False
    for event in events:
        name = event["event"]
        if name == "training.started":
            # Said by the process that starts, and in the foreground every process is attempt 0.
            while found and found[-1][-1]["event"] == "environment.changed":
                found[-1].pop()
            found.append([event])
            under_way = True
        elif name.startswith("job."):
            under_way = under_way and name != "job.exited"
        elif under_way and event.get("attempt") == found[-1][0].get("attempt"):
            found[-1].append(event)
            under_way = name not in ENDINGS
    return found


def _seconds_between(before: object, after: object) -> float:
    try:
        return (datetime.fromisoformat(str(after)) - datetime.fromisoformat(str(before))).total_seconds()
    except (ValueError, TypeError):
        return 0.0


def _speed(data: RunData) -> Figure | None:
    speeds = table(data.of("training.report"), ("step", "tokens_per_second"))["tokens_per_second"]
    speeds = speeds[np.isfinite(speeds)]
    if not len(speeds):
        return None
    tokens = number(data.last("training.report").get("tokens"))
    return Figure("speed", f"{np.median(speeds):,.0f} tokens/s", f"{tokens:,.0f} tokens learned")


def _memory(data: RunData) -> Figure | None:
    peaks = data.micro_batches["peak_gb"]
    peaks = peaks[np.isfinite(peaks)]
    if not len(peaks):
        return None
    limit = number(data.last("memory.limits").get("limit_gb"))
    return Figure("peak memory", f"{peaks.max():,.2f} GB", f"of {limit:,.1f} GB" if math.isfinite(limit) else "")


def _command(model: str, adapters: str) -> str:
    words = ["python", "-m", "mlx_lm", "generate", "--model", model, "--adapter-path", adapters, "--prompt"]
    return f'{shlex.join(words)} "…"'


def _fixed(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"
