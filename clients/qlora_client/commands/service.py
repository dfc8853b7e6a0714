"""Commands about the service and this machine."""

from __future__ import annotations

import typer

from qlora_client.commands.common import AsJson, home, print_json

# Every command imports what it needs itself: rich, redis and pydantic cost more time than `qlora --help` may take.
# ruff: noqa: PLC0415


def status(as_json: AsJson = False) -> None:
    """Show how the service stands: the daemon, its processes, the queue, the jobs.

    Exits with 69 when something does not run. What happened: `qlora logs`.
    """
    from qlora_engine.job import standing as service

    found = service.standing(home())
    if as_json:
        print_json(service.as_json(found))
    else:
        for line in service.lines(found):
            typer.echo(line)
    raise typer.Exit(found.exit_code)
