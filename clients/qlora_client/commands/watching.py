"""The command that shows everything on one screen."""

from __future__ import annotations

from typing import Annotated

import typer

from qlora_client.commands.common import AsJson, console, note, plain_home, print_json
from qlora_client.usage import finite

# Every command imports what it needs itself: rich, redis and pydantic cost more time than `qlora --help` may take.
# ruff: noqa: PLC0415


def top(
    every: Annotated[float, typer.Option(min=0.2, max=3600, callback=finite, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one page and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show everything on one screen, live; q quits.

    The running job with its loss curve, the queue, the last events. One job alone: `qlora logs -f ID`.
    """
    from qlora_client.top.run import run_top, snapshot

    if as_json:
        print_json(snapshot(plain_home()))
    elif not run_top(plain_home(), console(), every=every, once=once):
        note("The output is no terminal, so this is one page, as it is now.")
