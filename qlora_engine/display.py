"""Training as a person sees it in the foreground: a progress bar and a line for what is of note."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qlora_engine.job.events import Event


class Display:
    """A sink of events that keeps a progress bar and prints the rest above it.

    Without a terminal there is no bar, and a line for every report instead.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]} tok/s"),
            TextColumn("{task.fields[memory]} GB"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("load", total=None, loss="–", speed="–", memory="–")
        self._bar.start()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if event["event"] == "training.step":
            self._step(event)
            return
        if event["event"] == "phase.started":
            self._bar.update(self._task, description=event["phase"])
        if line := describe(event):
            self.console.print(line, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Give the terminal back."""
        self._bar.stop()

    def _step(self, event: Event) -> None:
        self._bar.update(
            self._task,
            completed=event["step"],
            total=event["steps"],
            loss="–" if event["loss"] is None else f"{event['loss']:.3f}",
            speed=f"{event['tokens_per_second']:.0f}",
            memory=f"{event['memory_gb']:.1f}",
        )


def describe(event: Event) -> str | None:  # noqa: PLR0911  # a table of one line each
    """One line for a person, or None for an event that needs none."""
    match event["event"]:
        case "training.started":
            blas = f", {event['blas']} on {event['threads']} threads" if event["blas"] else ""
            return f"Training on {event['backend']} ({event['device']}{blas})"
        case "model.loaded":
            return (
                f"Model {event['model']}: {event['parameters'] / 1e6:,.0f}M parameters, "
                f"{event['trainable'] / 1e6:,.2f}M trained, {_weights(event)}, {event['memory_gb']:.2f} GB"
            )
        case "data.loaded":
            return _data(event)
        case "training.resumed":
            return f"Resumed at step {event['step']} from {event['path']}"
        case "validation":
            return (
                f"step {event['step']}: {event['split']} loss {_number(event['loss'])}, "
                f"perplexity {_number(event['perplexity'])} over {event['tokens']:,} tokens"
            )
        case "training.report":
            return (
                f"step {event['step']}/{event['steps']}: loss {_number(event['loss'])}, "
                f"rate {event['learning_rate'] or 0:.2e}, "
                f"{event['tokens_per_second']:.0f} tokens/s, {event['memory_gb']:.2f} GB"
            )
        case "checkpoint.saved":
            return f"step {event['step']}: checkpoint {event['path']}"
        case "training.stopping":
            return f"Stopping at a checkpoint ({event['cause']}); once more ends at once"
        case "training.stopped":
            return f"Stopped at step {event['step']}; the same command goes on from there"
        case "training.done":
            return f"Done: {event['step']} steps in {event['seconds']:.0f} s, adapters in {event['adapters']}"
        case "checkpoint.damaged" | "environment.changed" | "guard.dropped":
            return "Note: " + ", ".join(f"{k} {v}" for k, v in event.items() if k not in ("ts", "level"))
    return None


def _weights(event: Event) -> str:
    if event["bits"] is None:
        return "not quantized"
    made = "quantized on load" if event["quantized_on_load"] else "quantized"
    return f"{event['bits']}-bit {made}" + (", float32 in memory for the CPU" if event["dequantized"] else "")


def _data(event: Event) -> str:
    line = (
        f"Data: {event['train']} training and {event['valid']} validation rows, {event['tokens']:,} tokens, "
        f"{event['supervised']:,} of them targets; {event['steps']} steps, {event['updates']} updates"
    )
    if event["truncated"]:
        line += f"; {event['truncated']} rows cut, {event['lost_share']:.1%} of the tokens lost"
    if event["nothing_to_learn"]:
        line += f"; {event['nothing_to_learn']} rows with nothing to learn"
    return line


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
