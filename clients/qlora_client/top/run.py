"""`qlora top` itself: a screen that is kept up to date, or one snapshot where there is no terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qlora_client.screen import keep_drawing
from qlora_client.terminal import has_screen
from qlora_client.top.look import Looking, View
from qlora_client.top.page import Room, page

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from qlora_engine.job.folder import Home

SNAPSHOT_WIDTH = 120  # columns of a page that no terminal shows


def run_top(home: Home, console: Console, *, every: float, once: bool) -> bool:
    """Show the screen until `q`, or print it once.

    Args:
        home: QLORAD_HOME.
        console: that writes to standard output.
        every: seconds between two looks.
        once: print one page, also to a terminal.

    Returns:
        Whether there was a screen to show it on, or one page was asked for.
    """
    looking = Looking(home)
    dots = not console.options.ascii_only
    live = has_screen() and not once
    try:
        if live:

            def frame(width: int, height: int) -> list[Text]:
                return page(looking.look(), Room(width, height, dots))

            keep_drawing(console, frame, every)
        else:
            width = console.width if console.is_terminal else SNAPSHOT_WIDTH
            for line in page(looking.look(), Room(width, None, dots)):
                console.print(line, no_wrap=True, overflow="ellipsis", crop=console.is_terminal)
    finally:
        looking.close()
    return live or once


def snapshot(home: Home) -> dict[str, Any]:
    """What there is to see now, for programs. Raises `OSError` if the home cannot be read."""
    looking = Looking(home)
    try:
        return as_json(looking.look())
    finally:
        looking.close()


def as_json(view: View) -> dict[str, Any]:
    """A view for programs."""
    active = view.active
    progress = view.progress
    return {
        "time": view.now,
        "runs": view.service.started is not None,
        "started": view.service.started,
        "troubles": view.service.troubles,
        "jobs": dict(view.counts),
        "active": None
        if active is None
        else {
            "record": active.record,
            "phase": progress.phase,
            "step": progress.step_or(active.step),
            "steps": progress.steps or active.steps,
            "loss": progress.loss,
            "validation": progress.validation,
            "tokens_per_second": progress.tokens_per_second,
            "memory_gb": progress.memory_gb,
            "peak_gb": progress.peak_gb,
            "limit_gb": progress.limit_gb,
            "seconds_left": progress.seconds_left,
        },
        "waiting": [{"id": job.id, "state": job.state, "why": job.reason} for job in view.waiting],
        "waits": view.waits,
        "events": list(view.events),
    }
