"""Events whose line for a person is one sentence with their fields in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qlora_engine.job.events import Event

SENTENCES = {
    "child.exited": "{child} ended with code {code} after {seconds} s",
    "child.restarting": "{child} is started again in {delay} s",
    "child.killed": "{child} did not end within {seconds} s and was killed",
    "child.hung": "{child} lives and does nothing, so it is killed and started again",
    "queue.unreachable": "the queue does not answer: {reason}",
    "queue.damaged": "the queue's file could not be read and lies in {moved_to}; no job is lost with it",
    "queue.reachable": "the queue answers again, after {seconds} s",
    "state.reconciled": "put right: {found} ({subject}), {answer}",
    "run.upgraded": "run folder brought from format {from} to {to}",
    "run.newer": "a newer qlorad has made this run, so it waits for that version: {what} ({path})",
    "metrics.serving": "metrics for Prometheus: {url}",
    "metrics.failed": "no metrics: {what} {remedy}",
    "notify.sent": "told {to}: {kind}",
    "notify.failed": "could not tell {to}: {kind}, {reason}",
    "upkeep.failed": "upkeep: {doing} could not be done: {reason}",
    "rejected.trimmed": "deleted the {count} oldest of what was rejected",
    "internal.error": "a bug, in {doing}: {error}",
    "inbox.lost": "the watched folder {path} cannot be read: {reason}",
    "file.taken": "took {path}",
    "request.received": "a client asks: {kind}",
    "job.cleaned": "cleaned away: {part}",
    "kernels.failed": "the engine's own kernel for {name} does not work here, so MLX's is used: {why}",
    "recomputation.chosen": "computes {layers} of {of} layers again in the backward pass, to save memory",
}
# By whether a field is true, a sentence for each.
EITHER = {
    "request.answered": ("ok", "answered: done", "answered: {what}"),
    "products.chosen": (
        "kept",
        "the model's matrices are dequantized once, for the whole run",
        "the model's matrices are multiplied by shape, as is fastest here",
    ),
    "kernels.chosen": (
        "names",
        "computes with kernels of its own: {names}",
        "computes with MLX's kernels alone",
    ),
    "siblings.chosen": (
        "together",
        "layers that read the same input compute as one",
        "layers that read the same input compute each by itself",
    ),
}


class _Fields(dict[str, str]):
    """A field that the event lacks is a question mark."""

    def __missing__(self, _key: str) -> str:
        return "?"


def sentence(event: Event) -> str | None:
    """The event's sentence; None for one that has none here."""
    name = str(event["event"])
    if name in EITHER:
        field, yes, no = EITHER[name]
        template = yes if event.get(field) else no
    elif name in SENTENCES:
        template = SENTENCES[name]
    else:
        return None
    return template.format_map(_Fields({key: _shown(value) for key, value in event.items() if value is not None}))


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
