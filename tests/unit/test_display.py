"""Training as a person sees it in the foreground."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from qlora_engine.display import Display
from qlora_engine.job.vocabulary import EVENTS
from qlora_engine.job.wording import describe

EVENTS_OF_A_RUN: list[dict[str, Any]] = [
    {"event": "training.started", "pid": 1, "backend": "cpu", "device": "x86_64", "versions": {},
     "blas": "/lib/libopenblas.so", "threads": 2},
    {"event": "phase.started", "phase": "load"},
    {"event": "model.loaded", "model": "smollm2", "model_type": "llama", "bits": 4, "quantized_on_load": False,
     "dequantized": True, "parameters": 134_515_008, "trainable": 2_442_240, "memory_gb": 0.54},
    {"event": "data.loaded", "format": "completion", "train": 300, "valid": 40, "test": 0, "tokens": 23_456,
     "supervised": 9_876, "truncated": 3, "lost_share": 0.0123, "nothing_to_learn": 1, "steps": 100, "updates": 50,
     "tokens_from": "cache", "seconds": 0.1},
    {"event": "training.resumed", "step": 20, "path": "/runs/x/checkpoints/step-000020", "exact": True, "changed": []},
    {"event": "validation", "step": 20, "split": "valid", "loss": 3.14159, "perplexity": 23.14, "tokens": 1234,
     "rows": 40, "seconds": 1.0},
    {"event": "training.step", "step": 21, "steps": 100, "update": 10, "epoch": 0, "loss": 2.5, "tokens": 400,
     "tokens_per_second": 130.4, "gradient_norm": 0.5, "seconds": 3.0, "rows": 2, "documents": 4, "memory_gb": 0.61,
     "peak_gb": 0.9, "cache_gb": 0.1, "process_gb": 0.8},
    {"event": "training.report", "step": 30, "steps": 100, "update": 15, "epoch": 0.2, "loss": 2.25,
     "learning_rate": 1e-4, "gradient_norm": 0.5, "tokens": 9000, "tokens_per_second": 131.0, "steps_per_second": 0.3,
     "padding": 0.1, "shapes": 3, "memory_gb": 0.61, "peak_gb": 0.9, "cache_gb": 0.1, "process_gb": 0.8,
     "seconds_left": 200.0},
    {"event": "checkpoint.saved", "step": 40, "path": "/runs/x/checkpoints/step-000040", "why": "count", "bytes": 1,
     "seconds": 0.1},
    {"event": "training.stopping", "cause": "SIGINT"},
    {"event": "training.stopped", "step": 40},
    {"event": "training.done", "step": 100, "seconds": 300.0, "tokens": 1, "loss_before": 3.0, "loss_after": 1.0,
     "kept": "last", "kept_step": 100, "adapters": "/runs/x/adapters"},
    {"event": "training.stalled", "phase": "train", "step": 40, "seconds": 605.0, "allowed": 600.0, "stacks": "Thread"},
    {"event": "ladder.rung", "rung": "split", "change": "2 rows at a time", "reason": "no room", "effective_batch": 4},
    {"event": "ladder.damaged", "path": "/runs/x/ladder.json"},
    {"event": "checkpoint.damaged", "path": "/runs/x/checkpoints/step-000060", "what": "state.safetensors differs."},
]  # fmt: skip
NOT_LINES = {"phase.started", "phase.ended", "training.step"}  # the bar shows them


def shown(events: list[dict[str, Any]], *, terminal: bool) -> str:
    output = io.StringIO()
    display = Display(Console(file=output, force_terminal=terminal, width=100, highlight=False))
    for event in events:
        display(event)
    display.close()
    display.close()
    return output.getvalue()


def test_without_a_terminal_each_event_of_note_is_a_line() -> None:
    """A log file gets whole lines: no bar, no colours, no line for every step, nothing cut at a width."""
    text = shown(EVENTS_OF_A_RUN, terminal=False)
    assert "\x1b" not in text
    assert "\r" not in text
    assert text.splitlines() == [describe(event) for event in EVENTS_OF_A_RUN if event["event"] not in NOT_LINES]


def test_on_a_terminal_there_is_a_bar_and_it_goes_away() -> None:
    """The last thing written gives the cursor back."""
    text = shown(EVENTS_OF_A_RUN, terminal=True)
    assert "21/100" in text
    assert "loss 2.500" in text
    assert "130 tok/s" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


def test_square_brackets_in_a_path_are_not_markup() -> None:
    """rich would swallow them, or raise."""
    event = EVENTS_OF_A_RUN[4] | {"path": "/runs/[bold]x[/]/step"}
    assert "/runs/[bold]x[/]/step" in shown([event], terminal=False)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_loss_that_is_no_number_can_be_shown(value: float | None) -> None:
    """A bad window is when a person looks."""
    for event in EVENTS_OF_A_RUN:
        changed = {key: value if key in ("loss", "perplexity") else item for key, item in event.items()}
        shown([changed], terminal=True)


def test_the_events_here_are_those_of_the_vocabulary() -> None:
    """Or the tests above would show something that never happens."""
    for event in EVENTS_OF_A_RUN:
        assert event.keys() - {"event"} == EVENTS[event["event"]].fields.keys(), event["event"]
