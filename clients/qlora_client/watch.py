"""`qlora ls --watch`: the list of jobs, kept up to date until `q`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.text import Text

from qlora_client.follow import Tail
from qlora_client.listing import Summary, in_lines
from qlora_client.screen import keep_drawing
from qlora_client.table import JobTable
from qlora_client.views import job_lines
from qlora_client.wanted import EVERY
from qlora_engine.job.hindrance import hindrances_in
from qlora_engine.job.text import local_time

if TYPE_CHECKING:
    from rich.console import Console

    from qlora_client.wanted import Wanted
    from qlora_engine.job.folder import Home

LOOK_SECONDS = 2.0


def watch_jobs(home: Home, console: Console, wanted: Wanted, most: int | None) -> None:
    """Show the newest `most` jobs that are wanted, or all, as far as they fit the terminal."""
    table = JobTable(home)
    with Tail(home.service_log, at_end=True) as log:

        def frame(_width: int, height: int) -> list[Text]:
            table.look(str(event.get("job")) for event in log.events() if event["event"] == "job.state")
            found = [job for job in table.newest_first() if wanted.takes(job)]
            lines = in_lines(found) if wanted == EVERY else found
            return screen(home, lines[:most], height, datetime.now(UTC))

        keep_drawing(console, frame, LOOK_SECONDS)


def screen(home: Home, found: list[Summary], height: int, now: datetime) -> list[Text]:
    """The list with a line below it that says how many do not fit."""
    fitting = found[: max(0, height - 2)]
    hindrances = hindrances_in(home)
    shown = [
        Summary.of(job.record, lambda: hindrances, now) if job.state == "queued" and job.jobs is None else job
        for job in fitting
    ]
    more = f" · {len(found) - len(shown):,} more" if len(found) > len(shown) else ""
    body = list(job_lines(shown, now)) if shown else [Text("No job fits.")]
    room = [Text()] * (height - 1 - len(body))
    return [*body, *room, Text(f"{local_time(now)}{more} · q quits", style="dim")]
