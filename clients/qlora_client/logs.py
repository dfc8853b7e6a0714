"""`qlora logs`: the events of a job or of the service, as lines for a person or as JSON."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections import deque
from collections.abc import Iterator

from rich.console import Console

from qlora_client.api import Client
from qlora_client.follow import LOOK_SECONDS, Tail, read_events
from qlora_client.lines import styled_line
from qlora_client.live import LiveView
from qlora_client.wanted import EVERY_EVENT, WantedEvents
from qlora_engine.job.events import Event
from qlora_engine.job.folder import Home, RunFolder

_HIDDEN_LEVEL = "debug"  # of the service log, for a person: the output of children and libraries


def print_job_log(
    client: Client,
    run: RunFolder,
    console: Console,
    *,
    follow: bool,
    as_json: bool,
    wanted: WantedEvents = EVERY_EVENT,
) -> None:
    """Print a job's events; with `follow`, those to come and its progress, until it is final."""
    events = client.events(run.id, follow=follow)
    if follow and not as_json and wanted == EVERY_EVENT:
        with LiveView(console) as view:
            for event in events:
                view.show(event)
        return
    for event in filter(wanted.takes, events):
        if as_json:
            print_json_line(event)
        else:
            console.print(styled_line(event, with_job=False), soft_wrap=True)


def print_service_log(
    home: Home,
    console: Console,
    *,
    follow: bool,
    as_json: bool,
    last: int | None,
    wanted: WantedEvents = EVERY_EVENT,
) -> None:
    """Print the last events of the service log that are wanted; with `follow`, those to come, until Ctrl-C.

    Args:
        home: whose log.
        console: where to.
        follow: go on.
        as_json: as JSON lines.
        last: how many at most; None for all that there are, in the older files, too.
        wanted: which.
    """
    quiet = not as_json and not wanted.names  # who names an event wants to see it

    def show(event: Event) -> None:
        if as_json:
            print_json_line(event)
        elif not (quiet and event.get("level") == _HIDDEN_LEVEL):
            console.print(styled_line(event, with_job=True), soft_wrap=True)

    with Tail(home.service_log) as tail:
        older = _older(home) if last is None or wanted != EVERY_EVENT else iter(())
        found = filter(wanted.takes, itertools.chain(older, tail.events()))
        for event in found if last is None else deque(found, last):
            show(event)
        while follow:
            time.sleep(LOOK_SECONDS)
            for event in filter(wanted.takes, tail.events()):
                show(event)


def _older(home: Home) -> Iterator[Event]:
    """The events of the log's older files, the oldest first."""
    files = home.logs.glob(f"{home.service_log.name}.*")
    numbered = sorted((int(number), path) for path in files if (number := path.suffix[1:]).isdecimal())
    for _, path in reversed(numbered):
        yield from read_events(path)


def print_json_line(event: Event) -> None:
    """One event as JSON without a character that a terminal might obey, at once."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()
