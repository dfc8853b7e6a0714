"""One line for a person from each event. Every view of a run uses these words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlora_engine.job.sentences import sentence
from qlora_engine.job.text import duration, local_time, plain, size

if TYPE_CHECKING:  # what writes events costs a client a tenth of a second
    from qlora_engine.job.events import Event

_HIDDEN = frozenset({"ts", "level", "event", "job", "attempt"})


def describe(event: Event) -> str:
    """What happened, in words; an event that is not known here shows its name and fields. Never raises."""
    text = (
        _training(event)
        or _fusing(event)
        or _incident(event)
        or _report(event)
        or _job(event)
        or _service(event)
        or _machine(event)
    )
    return plain(text or sentence(event) or _as_fields(event))


def _training(event: Event) -> str | None:  # noqa: PLR0911, PLR0912  # one case a kind of event
    match event["event"]:
        case "training.started":
            blas = _have(event, "blas", " with {} on " + _text(event, "threads") + " threads")
            return f"training on {_text(event, 'backend')} ({_text(event, 'device')}){blas}"
        case "phase.started":
            return f"{_text(event, 'phase')} …"
        case "phase.ended":
            return f"{_text(event, 'phase')} took {_seconds(event, 'seconds')}"
        case "model.loaded":
            return (
                f"model {_text(event, 'model')}: {_count(event, 'parameters')} parameters, "
                f"{_count(event, 'trainable')} trained, {_weights(event)}, {_memory(event)}"
            )
        case "data.loaded":
            return _data(event)
        case "training.step" | "training.report":
            left = _have(event, "seconds_left", f", {_seconds(event, 'seconds_left')} left")
            return (
                f"step {_text(event, 'step')}/{_text(event, 'steps')}  loss {_loss(event)}  "
                f"{_fixed(event, 'tokens_per_second', 0)} tokens/s  {_memory(event)}{left}"
            )
        case "validation":
            return (
                f"step {_text(event, 'step')}: {_text(event, 'split')} loss {_loss(event)}, "
                f"perplexity {_fixed(event, 'perplexity', 2)} over {_many(event, 'tokens', 'token')}"
            )
        case "checkpoint.saved":
            return f"step {_text(event, 'step')}: checkpoint saved ({_bytes(event)})"
        case "training.resumed":
            return f"goes on from step {_text(event, 'step')} ({_text(event, 'path')}){_exactness(event)}"
        case "training.stopping":
            return f"stops at a checkpoint ({_text(event, 'cause')}); asked again, it ends at once"
        case "training.stopped":
            return f"stopped at step {_text(event, 'step')}, where it can go on"
        case "training.done":
            return f"trained {_many(event, 'step', 'step')} in {_seconds(event, 'seconds')}: {_text(event, 'adapters')}"
        case "memory.limits":
            return _limits(event)
        case "packing.chosen":
            return f"documents {'share' if event.get('joined') else 'do not share'} rows: {_text(event, 'why')}"
        case "training.failed":
            return f"training failed: {_problem(event)}"
        case "training.stalled":
            return (
                f"stalled in {_text(event, 'phase')} at step {_text(event, 'step')}: nothing for "
                f"{_seconds(event, 'seconds')}, {_seconds(event, 'allowed')} allowed; it is stopped"
            )
        case "ladder.rung":
            return f"ran out of memory ({_text(event, 'reason')}): {_text(event, 'change')}"
    return None


def _fusing(event: Event) -> str | None:
    match event["event"]:
        case "fuse.started":
            return f"fusing {_text(event, 'source')} on {_text(event, 'backend')} ({_text(event, 'device')})"
        case "model.fused":
            bits = f"{_text(event, 'bits')}-bit" if event.get("bits") is not None else "not quantized"
            return f"fused {_text(event, 'weights')} into {_many(event, 'layers', 'layer')}, {bits}, {_memory(event)}"
        case "fuse.done":
            where = event.get("added") or event.get("gguf") or event.get("model")
            return f"fused in {_seconds(event, 'seconds')}: {where} ({_bytes(event)})"
        case "fuse.failed":
            return f"fusing failed: {_problem(event)}"
    return None


def _incident(event: Event) -> str | None:  # noqa: PLR0911  # one case a kind of event
    match event["event"]:
        case "environment.changed":
            return (
                f"{_text(event, 'name')} was {_text(event, 'then')} and is {_text(event, 'now')}; rounding may differ"
            )
        case "tokens.not_kept":
            return f"tokens are not kept for the next start: {_text(event, 'what')} ({_text(event, 'path')})"
        case "ladder.damaged":
            return f"how training had stepped down cannot be read, so it may do so anew ({_text(event, 'path')})"
        case "checkpoint.damaged":
            return f"checkpoint passed over: {_text(event, 'what')} ({_text(event, 'path')})"
        case "guard.dropped":
            return (
                f"step {_text(event, 'step')} dropped: {_text(event, 'place')} is {_text(event, 'value')}, "
                f"rows {_text(event, 'rows')}, {_text(event, 'in_a_row')} in a row"
            )
        case "guard.rolled_back":
            return (
                f"went back from step {_text(event, 'step')} to {_text(event, 'to_step')}, "
                f"learning rate × {_text(event, 'rate_factor')}"
            )
        case "training.early_stopped":
            return (
                f"validation loss no longer falls: lowest {_fixed(event, 'best_loss', 3)} "
                f"at step {_text(event, 'best_step')}"
            )
        case "training.restarted":
            return f"starts over: {_text(event, 'changed')} changed since step {_text(event, 'step')}"
    return None


def _report(event: Event) -> str | None:
    match event["event"]:
        case "sample.answered":
            asked, said = plain(_text(event, "prompt"), 60), plain(_text(event, "answer"), 100)
            return f"{_text(event, 'when')} training: {asked} → {said}"
        case "report.written":
            return f"report: {_text(event, 'path')}"
        case "report.failed":
            return f"no report to {_text(event, 'to')}: {_text(event, 'what')}"
    return None


def _exactness(event: Event) -> str:
    """Nothing where nothing has changed, as nearly always."""
    changed = event.get("changed")
    if not isinstance(changed, list) or not changed:
        return ""
    judged = "rounding is the same although" if event.get("exact") else "rounding may differ from here on:"
    return f"; {judged} {', '.join(map(str, changed))}"


def _weights(event: Event) -> str:
    if event.get("bits") is None:
        return "not quantized"
    made = " on load" if event.get("quantized_on_load") else ""
    held = ", float32 in memory for the CPU" if event.get("dequantized") else ""
    return f"{_text(event, 'bits')}-bit{made}{held}"


def _data(event: Event) -> str:
    line = (
        f"data: {_many(event, 'train', 'training row')}, {_text(event, 'valid')} for validation, "
        f"{_many(event, 'tokens', 'token')} of which {_count(event, 'supervised')} are learned, "
        f"{_many(event, 'steps', 'step')}, {_many(event, 'updates', 'update')}"
    )
    if event.get("truncated"):
        lost = 100 * (_number(event, "lost_share") or 0.0)
        line += f"; {_many(event, 'truncated', 'row')} cut, {lost:.1f}% of the tokens lost"
    if event.get("nothing_to_learn"):
        line += f"; {_many(event, 'nothing_to_learn', 'row')} with nothing to learn"
    if event.get("tokens_from") == "cache":
        line += "; tokens kept from before"
    return line


def _job(event: Event) -> str | None:  # noqa: PLR0911  # one case a kind of event
    match event["event"]:
        case "job.accepted":
            return f"accepted {_text(event, 'name')} ({_text(event, 'model')}) from {_text(event, 'source')}"
        case "job.examined":
            return _examined(event)
        case "job.state":
            return f"{_text(event, 'from')} → {_text(event, 'to')}{_have(event, 'reason', ': {}')}"
        case "job.outdone":
            return (
                f"validation loss {_loss(event)} at step {_text(event, 'step')} is too far above the "
                f"{_fixed(event, 'best', 3)} of {_text(event, 'by')}; it is ended"
            )
        case "job.exited":
            how = _text(event, "signal") if event.get("signal") else f"code {_text(event, 'code')}"
            return f"training process ended: {_text(event, 'outcome')} ({how})"
        case "file.rejected":
            moved = _have(event, "moved_to", " It lies in {}.")
            return f"rejected {_text(event, 'path')}: {_problem(event)}{moved}"
        case "gpu.busy":
            return f"waits: the GPU is in use by {_text(event, 'holder')}"
    return None


def _examined(event: Event) -> str:
    rows = _have(event, "rows", f"{_many(event, 'rows', 'row')}, {_many(event, 'tokens', 'token')}, ")
    limit = f"{_fixed(event, 'limit_gb', 1)} GB may be used"
    memory = limit if event.get("peak_gb") is None else f"about {_fixed(event, 'peak_gb', 1)} GB at most, {limit}"
    time = _have(event, "seconds", f", about {_seconds(event, 'seconds')}")
    warnings = event.get("warnings")
    said = " ".join(str(warning) for warning in warnings) if isinstance(warnings, list) else ""
    return f"examined: {rows}{memory}{time}{'. ' + said if said else ''}"


def _limits(event: Event) -> str:
    cache = f"{_fixed(event, 'cache_gb', 1)} GB of it may be kept for reuse"
    if event.get("limit_gb") is None:
        return f"memory: {_fixed(event, 'device_gb', 1)} GB, not limited; {cache}"
    return f"memory: at most {_fixed(event, 'limit_gb', 1)} GB ({_text(event, 'source')}); {cache}"


def _service(event: Event) -> str | None:  # noqa: PLR0911  # one case a kind of event
    match event["event"]:
        case "daemon.started":
            return f"qlorad {_text(event, 'version')} serves {_text(event, 'home')}, process {_text(event, 'pid')}"
        case "daemon.stopping":
            return f"the daemon stops ({_text(event, 'signal')})"
        case "daemon.stopped":
            return f"the daemon has stopped, in {_seconds(event, 'seconds')}"
        case "child.started":
            return f"{_text(event, 'child')} started, process {_text(event, 'pid')}"
        case "child.output":
            return f"{_text(event, 'child')}: {_text(event, 'line')}"
        case "setting.unknown":
            return f"{_text(event, 'name')} is no setting, and ignored{_have(event, 'nearest', ' (did you mean {}?)')}"
        case "inbox.watching":
            return f"watches {_text(event, 'path')}"
        case "queue.paused":
            until = f" until {local_time(event['until'], date=True)}" if event.get("until") else ""
            return f"the queue is paused{until}"
        case "queue.resumed":
            return "the queue is resumed"
        case "library.log":
            return f"{_text(event, 'logger')}: {_text(event, 'message')}"
    return None


def _machine(event: Event) -> str | None:  # noqa: PLR0911, PLR0912  # one case a kind of event
    match event["event"]:
        case "machine.power":
            low = ", too low to train on" if event.get("low") else ""
            source = "plugged in" if event.get("source") == "ac" else "on battery"
            return f"the machine is {source}{_have(event, 'percent', ', {}% charged')}{low}"
        case "machine.heat":
            return f"heat is {_text(event, 'heat')}, was {_text(event, 'before')}"
        case "machine.pressure":
            return f"pressure on memory is {_text(event, 'pressure')}, was {_text(event, 'before')}"
        case "machine.unknown":
            return f"{_text(event, 'what')} of the machine is not known: {_text(event, 'reason')}"
        case "machine.slept":
            if _number(event, "seconds"):
                return f"the machine slept for {_seconds(event, 'seconds')}"
            return f"the daemon stood still for {_seconds(event, 'stopped')}"
        case "machine.clock_set":
            seconds = _number(event, "seconds") or 0.0
            return f"the clock was set {'forward' if seconds > 0 else 'back'} by {duration(abs(seconds))}"
        case "hindrance.began":
            return f"jobs wait: {_text(event, 'what')}"
        case "hindrance.ended":
            return f"jobs wait no more for: {_text(event, 'kind').replace('_', ' ')}"
        case "awake.held":
            return f"the machine stays awake ({_text(event, 'program')})"
        case "awake.failed":
            return f"the machine may fall asleep: {_text(event, 'what')}"
        case "kernels.lent":
            return f"{_many(event, 'files', 'file')} of compiled kernels taken over"
        case "kernels.kept":
            return f"{_many(event, 'files', 'file')} of compiled kernels kept for later jobs"
        case "kernels.lost":
            return f"compiled kernels are not used again, {_text(event, 'doing')} failed: {_text(event, 'reason')}"
    return None


def _as_fields(event: Event) -> str:
    fields = (f"{key}={value}" for key, value in event.items() if key not in _HIDDEN and value is not None)
    return " ".join((str(event["event"]), *fields))


def _problem(event: Event) -> str:
    where = _have(event, "where", " ({})")
    return f"{_text(event, 'what')}{where}{_have(event, 'remedy', ' {}')}"


def _text(event: Event, key: str) -> str:
    value = event.get(key)
    return "?" if value is None else str(value)


def _have(event: Event, key: str, template: str) -> str:
    """`template` with the value in it, or nothing when there is none."""
    value = event.get(key)
    return "" if value in (None, "") else template.replace("{}", str(value))


def _number(event: Event, key: str) -> float | None:
    value = event.get(key)
    return float(value) if isinstance(value, int | float) else None


def _fixed(event: Event, key: str, digits: int) -> str:
    value = _number(event, key)
    return "–" if value is None else f"{value:,.{digits}f}"


def _loss(event: Event) -> str:
    return _fixed(event, "loss", 3)


def _memory(event: Event) -> str:
    return f"{_fixed(event, 'memory_gb', 2)} GB"


def _seconds(event: Event, key: str) -> str:
    value = _number(event, key)
    return "–" if value is None else duration(value)


def _bytes(event: Event) -> str:
    value = _number(event, "bytes")
    return "–" if value is None else size(value)


def _count(event: Event, key: str) -> str:
    """135,000,000 as 135M."""
    value = _number(event, key)
    if value is None:
        return "?"
    return f"{value / 1e6:,.4g}M" if value >= 1e6 else f"{value:,.0f}"


def _many(event: Event, key: str, noun: str) -> str:
    """So many of them: 1 row, 2 rows."""
    return f"{_count(event, key)} {noun}{'' if event.get(key) == 1 else 's'}"
