"""`qlora logs`: the events of a job or of the service, as lines for a person or as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections import deque

from rich.console import Console

from qlora_client.api import Client
from qlora_client.follow import LOOK_SECONDS, Tail
from qlora_client.lines import styled_line
from qlora_client.live import LiveView
from qlora_engine.job.events import Event
from qlora_engine.job.folder import Home, RunFolder

_HIDDEN_LEVEL = "debug"  # of the service log, for a person: the output of children and libraries


def print_job_log(client: Client, run: RunFolder, console: Console, *, follow: bool, as_json: bool) -> None:
    """Print a job's events; with `follow`, those to come and its progress, until it is final."""
    events = client.events(run.id, follow=follow)
    if as_json:
        for event in events:
            print_json_line(event)
    elif follow:
        with LiveView(console) as view:
            for event in events:
                view.show(event)
    else:
        for event in events:
            console.print(styled_line(event, with_job=False), soft_wrap=True)


def print_service_log(home: Home, console: Console, *, follow: bool, as_json: bool, last: int) -> None:
    """Print the last events of the service log; with `follow`, those to come, until Ctrl-C."""
    with Tail(home.service_log) as tail:
        for event in deque(tail.events(), last):
            _print_service_event(event, console, as_json=as_json)
        while follow:
            time.sleep(LOOK_SECONDS)
            for event in tail.events():
                _print_service_event(event, console, as_json=as_json)


def _print_service_event(event: Event, console: Console, *, as_json: bool) -> None:
    if as_json:
        print_json_line(event)
    elif event.get("level") != _HIDDEN_LEVEL:
        console.print(styled_line(event, with_job=True), soft_wrap=True)


def print_json_line(event: Event) -> None:
    """One event as JSON without a character that a terminal might obey, at once."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()
