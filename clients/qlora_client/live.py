"""A job's progress while it runs: a bar on a terminal, one line a report anywhere else."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from qlora_client.lines import styled_line
from qlora_client.progress import Progress as JobProgress
from qlora_client.progress import after
from qlora_engine.job.events import Event
from qlora_engine.job.text import duration, plain

# What the bar shows already; on a terminal these print no line of their own.
_IN_THE_BAR = frozenset({"phase.started", "phase.ended", "training.step", "training.report"})
# What would only repeat the reports without a bar.
_SILENT = frozenset({"phase.ended", "training.step"})


class LiveView:
    """Shows the events of one job as they come.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self.progress = JobProgress()
        self._console = console
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("waits", total=None, facts="")

    def show(self, event: Event) -> None:
        """Take one more event."""
        self.progress = after(self.progress, event)
        if self._console.is_terminal:
            if event["event"] not in _IN_THE_BAR:
                self._console.print(styled_line(event, with_job=False))
            self._update_bar()
        elif event["event"] not in _SILENT:
            self._console.print(styled_line(event, with_job=False), soft_wrap=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def _update_bar(self) -> None:
        now = self.progress
        self._bar.update(
            self._task,
            description=plain(now.phase or now.state or "waits", 30),
            completed=now.step,
            total=now.steps or None,
            facts=bar_facts(now),
        )


def bar_facts(now: JobProgress) -> str:
    """Loss, speed, memory and time left, as far as they are known."""
    parts = []
    if now.loss is not None:
        parts.append(f"loss {now.loss:.3f}")
    if now.tokens_per_second is not None:
        parts.append(f"{now.tokens_per_second:,.0f} tokens/s")
    if now.memory_gb is not None:
        parts.append(f"{now.memory_gb:.2f} GB")
    if now.seconds_left is not None:
        parts.append(f"{duration(now.seconds_left)} left")
    return " · ".join(parts)
