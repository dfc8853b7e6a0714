"""Training as a person sees it in the foreground: a progress bar and a line for what is of note."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qlora_engine.job.events import Event
from qlora_engine.job.wording import describe

QUIET = frozenset({"phase.started", "phase.ended"})  # the bar names the phase


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
        if event["event"] not in QUIET:
            self.console.print(describe(event), markup=False, soft_wrap=True)

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
