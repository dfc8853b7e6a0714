"""Commands that add and list models."""

from __future__ import annotations

from typing import Annotated

import typer

from qlora_client import completion
from qlora_client.commands.common import AsJson, console, home, note, print_json

# Every command imports what it needs itself: rich, redis and pydantic cost more time than `qlora --help` may take.
# ruff: noqa: PLC0415


def add_model(
    source: Annotated[
        str,
        typer.Argument(
            metavar="NAME_OR_PATH",
            help="`smollm2`, or the path of a .gguf file.",
            autocompletion=completion.known_models,
        ),
    ],
    name: Annotated[str | None, typer.Option(help="The name that job files use. [default: the file's]")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the model of that name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Add a model, after which `model: NAME` works in job files.

    What is there: `qlora models ls`.
    """
    from qlora_client.models import add_model as add

    folder = add(source, home().path, name=name, replace=replace, console=console(stderr=as_json))
    if as_json:
        print_json({"model": folder.name, "path": folder})
        return
    typer.echo(f"Added {folder.name}: {folder}")
    note(f"Write `model: {folder.name}` in a job file.")


def list_models(as_json: AsJson = False) -> None:
    """List the models of this home. Add one: `qlora models add smollm2`."""
    import dataclasses

    from qlora_engine.job.models import installed

    models = installed(home().path)
    if as_json:
        print_json([dataclasses.asdict(model) for model in models])
    elif models:
        from qlora_client.views import print_models

        print_models(console(), models)
    else:
        note("There are no models yet. Add a small one: qlora models add smollm2")
