"""Commands about the service and this machine."""

from __future__ import annotations

import typer

from qlora_client.commands.common import AsJson, console, home, print_json

# Every command imports what it needs itself: rich, redis and pydantic cost more time than `qlora --help` may take.
# ruff: noqa: PLC0415


def status(as_json: AsJson = False) -> None:
    """Show how the service stands.

    The daemon, its processes, the queue, the jobs. Exits with 69 when something does not run. What happened:
    `qlora logs`.
    """
    from qlora_engine.job import standing as service

    found = service.standing(home())
    if as_json:
        print_json(service.as_json(found))
    else:
        for line in service.lines(found):
            typer.echo(line)
    raise typer.Exit(found.exit_code)


def doctor(as_json: AsJson = False) -> None:
    """Check this machine, and say what to do about it.

    All that the daemon and its jobs need. Exits with 69 when something keeps jobs from running. How the service
    stands: `qlora status`.
    """
    from qlora_client.doctor import page
    from qlora_client.doctor.examination import examine
    from qlora_client.doctor.finding import exit_code
    from qlora_client.doctor.machine import this_machine

    found = examine(this_machine())
    if as_json:
        print_json(page.as_json(found))
    else:
        page.show(found, console())
    raise typer.Exit(exit_code(found.findings))
