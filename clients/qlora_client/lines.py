"""Events as coloured lines for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlora_engine.job.folder import JOB_ID
from qlora_engine.job.text import local_time, plain
from qlora_engine.job.wording import describe

if TYPE_CHECKING:
    from rich.text import Text

    from qlora_engine.job.events import Event

_TIME = len("20261122-143501-")  # of a job's id
_STYLES = {"warning": "yellow", "error": "bold red", "debug": "dim"}
_STATE_STYLES = {
    "running": "green",
    "done": "bold green",
    "failed": "bold red",
    "cancelled": "yellow",
    "held": "yellow",
    "stopping": "yellow",
    "newer": "yellow",
}


def styled_line(event: Event, *, with_job: bool, short: bool = False) -> Text:
    """The event as a coloured line: time, job where asked for, and what happened.

    Args:
        event: of the vocabulary, or any other.
        with_job: name the job.
        short: by what its id says of its name, without the time.
    """
    from rich.text import Text  # noqa: PLC0415  # a table of contents of the shell commands needs no rich

    line = Text().append(local_time(event.get("ts", "")), style="dim")
    if with_job and event.get("job"):
        job = plain(event["job"], 80)
        line.append(f"  {job[_TIME:] if short and JOB_ID.fullmatch(job) else job}", style="cyan")
    style = _STYLES.get(str(event.get("level")), "")
    if event["event"] == "job.state":
        style = state_style(str(event.get("to")))
    return line.append("  ").append(describe(event), style=style)


def state_style(state: str) -> str:
    """The colour of a state."""
    return _STATE_STYLES.get(state, "")
