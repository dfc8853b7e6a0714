"""What the commands share: arguments, and how they answer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from qlora_client import completion
from qlora_client.home import plain_home

if TYPE_CHECKING:
    from rich.console import Console

    from qlora_client.api import Client
    from qlora_engine.job.folder import Home

__all__ = ["AsJson", "JobId", "answered", "console", "home", "make_client", "note", "plain_home", "print_json"]

# Imported where it is used: rich, redis and pydantic cost more time than `qlora --help` may take.
# ruff: noqa: PLC0415

JobId = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="The job's id, or any part of it that no other has.",
        autocompletion=completion.job_ids,
    ),
]
INTERRUPTED = 130  # as a shell says of a program that Ctrl-C ended
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
