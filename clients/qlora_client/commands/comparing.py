"""The command that puts jobs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qlora_client import completion
from qlora_client.commands.common import AsJson, console, make_client, note, print_json

# Every command imports what it needs itself: rich, redis and pydantic cost more time than `qlora --help` may take.
# ruff: noqa: PLC0415

WIDEST = 120  # columns of a curve


def compare(
    jobs: Annotated[
        list[str],
        typer.Argument(metavar="ID...", help="Two jobs or more.", autocompletion=completion.job_ids),
    ],
    plot: Annotated[Path | None, typer.Option(help="Draw the losses: a .svg, .png or .pdf file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare jobs: what differs, and their losses.

    The settings that differ, losses side by side, speed and memory. Which jobs there are: `qlora ls`.
    """
    from qlora_client.compare import compared, page
    from qlora_client.compare.plot import check_plot, draw

    if plot is not None:
        check_plot(plot)
    found = compared.compare(make_client(), jobs)
    if as_json:
        print_json(compared.as_json(found))
    else:
        out = console()
        width = min(out.width, WIDEST) if out.is_terminal else 0
        colours = out.color_system is not None and not out.no_color
        for line in page.lines(found, width, colours=colours, dots=not out.options.ascii_only):
            out.print(line, no_wrap=True, overflow="ellipsis", crop=out.is_terminal)
    if plot is not None:
        draw(found, plot)
        note(f"The plot is in {plot}.")
