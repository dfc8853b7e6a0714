"""Commands that help to write a job file: one to start from, and what may stand in it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qlora_client import completion
from qlora_client.commands.common import AsJson, answered, home, note, print_json

# Every command imports what it needs itself: rich, redis and pydantic cost more time than `qlora --help` may take.
# ruff: noqa: PLC0415


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the job file goes.")] = Path(),
    *,
    model: Annotated[
        str | None,
        typer.Option(help="A model of `qlora models ls`, a folder, or owner/name.", autocompletion=completion.models),
    ] = None,
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

    from qlora_client.first_job import FirstJob, check_place, model_to_propose, write
    from qlora_client.home import expanded
    from qlora_client.questions import CONFIG, ask, check_model_name, from_folder, missing_model

    place = expanded(folder)
    check_place(place, replace=force)
    if model:
        check_model_name(from_folder(model, place, CONFIG), place, home())
    memory = psutil.virtual_memory().total
    job = FirstJob(
        folder=place,
        name=name or place.absolute().name or "job",
        model=from_folder(model, place, CONFIG) if model else model_to_propose(home(), memory),
        data=from_folder(data, place, "train.jsonl") if data else "data",
        memory=memory,
    )
    if not yes and not as_json and sys.stdin.isatty() and sys.stdout.isatty():
        given = {key for key, value in (("name", name), ("model", model), ("data", data)) if value}
        job = answered(lambda: ask(job, given, home(), note))
    written = write(job, replace=force)
    if as_json:
        print_json({"job_file": str(job.file), "model": job.model, "written": [str(path) for path in written]})
        return
    for path in written:
        typer.echo(path)
    if missing := missing_model(job.model, home()):
        note(f"The model is not here yet: qlora models add {missing}")
    here = folder if str(folder) != "." else job.file
    note(f"Look at it, then: qlora validate {here}, and: qlora submit {here}")


def schema(_as_json: AsJson = False) -> None:
    """Print the JSON Schema of a job file.

    Editors complete and check a file by it: `qlora init` puts it beside the job file and refers to it. It is JSON with
    and without --json.
    """
    from qlora_engine.job.schema import as_text

    typer.echo(as_text(), nl=False)
