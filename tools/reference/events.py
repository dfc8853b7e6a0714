"""docs/events.md: every event and its fields, from the vocabulary."""

from __future__ import annotations

from qlora_engine.job.vocabulary import COMMON, EVENTS


def as_markdown() -> str:
    """The vocabulary as a document."""
    lines = [
        "# Events",
        "",
        "Every line of `logs/qlorad.jsonl`, `runs/<job>/events.jsonl` and `runs/<job>/metrics.jsonl` is one of these "
        "events as a JSON object. This page is generated from `qlora_engine/job/vocabulary.py`; `make docs` writes it.",
        "",
        "Every event carries:",
        "",
        *(f"- `{name}`: {meaning}" for name, meaning in COMMON.items()),
    ]
    for name, kind in EVENTS.items():
        lines += ["", f"## `{name}`", "", f"{kind.meaning} Level {kind.level}.", ""]
        lines += [f"- `{key}`: {meaning}" for key, meaning in kind.fields.items()]
    return "\n".join(lines).rstrip() + "\n"
