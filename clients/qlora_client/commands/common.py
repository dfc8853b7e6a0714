"""What the commands share: arguments, and how they answer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from qlora_client import completion
from qlora_client.home import plain_home
from qlora_engine.interrupts import INTERRUPTED

if TYPE_CHECKING:
    from rich.console import Console

    from qlora_client.api import Client
    from qlora_client.groups import Group
    from qlora_engine.job.folder import Home
    from qlora_engine.job.record import JobRecord

__all__ = [
    "AsJson",
    "JobId",
    "answered",
    "console",
    "home",
    "make_client",
    "note",
    "of_group",
    "plain_home",
    "print_group_states",
    "print_json",
]

# Imported where it is used: rich, redis and pydantic cost more time than `qlora --help` may take.
# ruff: noqa: PLC0415

JobId = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="The job's id, any part of it that no other has, or how its name begins.",
        autocompletion=completion.job_ids,
    ),
]
T = TypeVar("T")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def make_client() -> Client:
    """The Python API, for the home that the settings name."""
    from qlora_client.api import Client

    return Client()


def home() -> Home:
    """The home that the settings name."""
    from qlora_worker.settings import Settings

    return Settings.read().folders


def console(*, stderr: bool = False) -> Console:
    """Standard output, for a person; standard error, where the output is for a program."""
    from qlora_client.views import make_console

    return make_console(stderr=stderr)


def note(text: str) -> None:
    """Something for a person that a program which reads the output must not see."""
    from qlora_engine.job.text import plain

    typer.echo(plain(text), err=True)


def print_json(value: object) -> None:
    """Something for a program."""
    import json

    typer.echo(json.dumps(value, indent=2, default=_as_text))


def of_group(group: Group, ask: Callable[[str], object], applies: Callable[[JobRecord], bool]) -> None:
    """Ask the daemon for the same of each job of a sweep that it applies to, of those that wait first.

    So none of them starts in the place of one that is stopped.
    """
    import contextlib

    from qlora_client.api import JobHasEnded
    from qlora_engine.job.errors import WrongState
    from qlora_engine.job.states import ACTIVE

    for record in sorted((one.job for one in group.members), key=lambda job: (job.state in ACTIVE, job.created)):
        if applies(record):
            with contextlib.suppress(JobHasEnded, WrongState):  # it has ended meanwhile
                ask(record.id)


def print_group_states(group: Group, *, as_json: bool) -> None:
    """How the jobs of a sweep stand."""
    if as_json:
        from qlora_client.groups import as_json as group_as_json

        print_json(group_as_json(group))
    else:
        typer.echo(f"{group.id} {', '.join(f'{count} {state}' for state, count in group.states.items())}")


def _as_text(value: object) -> str:
    """What JSON has no form for: times as ISO 8601, and paths."""
    return value.isoformat() if isinstance(value, datetime) else str(value)


def answered(ask: Callable[[], T]) -> T:
    """The answers of a person, who may end the questions with Ctrl-C or Ctrl-D; nothing is done then."""
    try:
        return ask()
    except typer.Abort:
        typer.echo(err=True)  # the prompt's line
        note("Nothing was done.")
        raise typer.Exit(INTERRUPTED) from None
