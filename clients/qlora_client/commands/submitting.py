"""Commands that take a job file: submit it, and say what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qlora_client.commands.common import AsJson, console, make_client, note, print_json

# Every command imports what it needs itself: rich, redis and pydantic cost more time than `qlora --help` may take.
# ruff: noqa: PLC0415


def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A job file, or a folder that holds job.yaml.")],
    again: Annotated[bool, typer.Option("--again", help="Even if a job just like it has not ended yet.")] = False,
) -> None:
    """Hand a job file to the daemon and print the job's id.

    Relative paths in the file start from its folder. Watch the job with `qlora logs -f ID`. Where the daemon does not
    answer, the job is left in the watched folder for when it runs, and no id is printed.
    """
    submitted = make_client().submit_or_leave(file, again=again)
    if isinstance(submitted, str):
        typer.echo(submitted)
        note(f"Watch it: qlora logs -f {submitted}")
        return
    note(f"{submitted.reason.what} The job waits in {submitted.path} and is taken from there, once.")
    note("Start the daemon: qlorad. Then look: qlora ls")


def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A job file, or a folder that holds job.yaml.")],
    as_json: AsJson = False,
) -> None:
    """Say what a job file needs before it is submitted: data, memory, time, and what is wrong with it.

    Nothing is submitted, and no daemon is needed. Then: `qlora submit FILE`.
    """
    from qlora_client.validate import as_json as for_machines
    from qlora_client.validate import exit_code, show
    from qlora_client.validate import validate as look
    from qlora_worker.settings import Settings

    verdict = look(file, Settings.read())
    if as_json:
        print_json(for_machines(verdict))
    else:
        show(verdict, console())
    raise typer.Exit(exit_code(verdict))
