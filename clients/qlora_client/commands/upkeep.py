"""The command that makes room."""

from __future__ import annotations

from typing import Annotated

import typer

from qlora_client.commands.common import AsJson, print_json

# Every command imports what it needs itself: rich, redis and pydantic cost more time than `qlora --help` may take.
# ruff: noqa: PLC0415


def clean(
    keep: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="The N jobs that ended last stay.", show_default=False)
    ] = None,
    older: Annotated[
        str | None, typer.Option(metavar="AGE", help="Only what ended longer ago goes: 30d, 12h.", show_default=False)
    ] = None,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Of jobs that are done only the checkpoints go.")
    ] = False,
    models: Annotated[bool, typer.Option("--models", help="Models go that no job was made with.")] = False,
    tokens: Annotated[bool, typer.Option("--tokens", help="Kept tokens go that no job uses now.")] = False,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make room: delete jobs that have ended.

    They go with their results, by --keep, --older or both. What a job needs that has not ended stays. Try it first with
    --dry-run.
    """
    from dataclasses import asdict
    from datetime import timedelta

    from qlora_client.clean import Wanted, carry_out, lines, look
    from qlora_engine.job.cleaning import Part
    from qlora_engine.job.when import seconds_of
    from qlora_worker.settings import Settings

    jobs = keep is not None or older is not None
    if not (models or tokens or jobs) or (checkpoints and not jobs):
        raise typer.BadParameter("Say which jobs: --keep 20, --older 30d or both; or --models, --tokens.")
    try:
        age = None if older is None else timedelta(seconds=seconds_of(older))
    except ValueError as error:
        raise typer.BadParameter(f"{older!r:.40} {error}.", param_hint="--older") from None
    wanted = Wanted(jobs, Part.CHECKPOINTS if checkpoints else Part.RUN, keep, age, models, tokens)
    settings = Settings.read()
    found = look(settings.folders, wanted)
    if not dry_run:
        found = carry_out(settings, found, wanted)
    if as_json:
        print_json({"dry_run": dry_run, "bytes": found.bytes, **asdict(found)})
    else:
        for line in lines(found, gone=not dry_run):
            typer.echo(line)
