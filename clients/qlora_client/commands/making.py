"""Commands that help to write a job file: one to start from, and what may stand in it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qlora_client.commands.common import AsJson, home, note, print_json

# Every command imports what it needs itself: rich, redis and pydantic cost more time than `qlora --help` may take.
# ruff: noqa: PLC0415


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the job file goes.")] = Path(),
    *,
    model: Annotated[str | None, typer.Option(help="A model of `qlora models ls`, a folder, or owner/name.")] = None,
    data: Annotated[
        str | None, typer.Option(help="The folder of train.jsonl; rows are made where there is none.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the job.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a job file that is there.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; take what is proposed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a job file that fits this machine, with comments.

    Asks for what is not given, where there is somebody to ask. Then: `qlora validate FOLDER`.
    """
    import psutil

    from qlora_client.first_job import FirstJob, model_to_propose, write

    memory = psutil.virtual_memory().total
    asks = not yes and not as_json and sys.stdin.isatty() and sys.stdout.isatty()

    def choose(question: str, given: str | None, proposed: str) -> str:
        if given is not None or not asks:
            return given or proposed
        return str(typer.prompt(question, default=proposed))

    job = FirstJob(
        folder=folder.expanduser(),
        name=choose("Name of the job", name, folder.expanduser().absolute().name or "job"),
        model=choose("Model", model, model_to_propose(home(), memory)),
        data=choose("Folder of the data", data, "data"),
        memory=memory,
    )
    written = write(job, replace=force)
    if as_json:
        print_json({"job_file": str(job.file), "model": job.model, "written": [str(path) for path in written]})
        return
    for path in written:
        typer.echo(path)
    here = folder if str(folder) != "." else job.file
    note(f"Look at it, then: qlora validate {here}, and: qlora submit {here}")


def schema() -> None:
    """Print the JSON Schema of a job file.

    Editors complete and check a file by it: `qlora init` puts it beside the job file and refers to it.
    """
    from qlora_engine.job.schema import as_text

    typer.echo(as_text(), nl=False)
