"""A sweep on a terminal: its jobs as a table, the best first, and why some of them ended."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from qlora_client.lines import state_style
from qlora_engine.job.states import State
from qlora_engine.job.sweep import short_keys, shown
from qlora_engine.job.text import plain

if TYPE_CHECKING:
    from qlora_client.groups import Group, Member

_WIDEST_SETTING = 16  # cells; the whole of it is in the job's name


def print_group(console: Console, group: Group) -> None:
    """Print the table; a terminal cuts the ids where they do not fit, a pipe gets all of it."""
    for line in group_lines(group):
        wraps = line.plain.startswith(("  ", "Best:"))
        console.print(line, no_wrap=not wraps, overflow="fold" if wraps else "ellipsis", crop=console.is_terminal)


def group_lines(group: Group) -> Iterator[Text]:
    """The sweep's id and how far it is, its jobs, what has to be said of some, and the best."""
    yield Text(plain(group.id), style="bold")
    counts = ", ".join(f"{count} {state}" for state, count in group.states.items())
    share = next((one.job.stop_worse_than for one in group.members if one.job.stop_worse_than), None)
    ends = f" · ends what is {share:.0%} worse" if share is not None else ""
    jobs = "1 job" if len(group.members) == 1 else f"{len(group.members)} jobs"
    yield Text(f"{jobs}: {counts}{ends}", style="dim")
    yield from _table(group)
    for rank, member in enumerate(group.members, 1):
        if member.job.reason and member.job.state is not State.DONE:
            yield Text(f"  {rank}  {plain(member.job.reason, 200)}", style="dim")
    if group.best is not None:
        yield Text(f"Best: {plain(group.best.job.id)}")


def _table(group: Group) -> Iterator[Text]:
    short = short_keys(group.keys)
    headings = ("#", *(plain(short[key], 40) for key in group.keys), "STATE", "STEP", "LAST", "BEST", "AT", "ID")
    rows = [_row(rank, member, group.keys) for rank, member in enumerate(group.members, 1)]
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    yield Text(_joined(headings, widths).rstrip(), style="dim")
    place = 1 + len(group.keys)
    for member, row in zip(group.members, rows, strict=True):
        before, after = _joined(row[:place], widths[:place]), _joined(row[place + 1 :], widths[place + 1 :])
        line = Text(f"{before}  ").append(row[place].ljust(widths[place]), style=state_style(member.job.state))
        line.append(f"  {after}")
        line.rstrip()
        yield line


def _row(rank: int, member: Member, keys: Sequence[str]) -> tuple[str, ...]:
    job, best, last = member.job, member.best, member.last
    settings = (plain(shown(job.settings.get(key)), _WIDEST_SETTING) for key in keys)
    return (
        str(rank),
        *settings,
        str(job.state),
        f"{job.step}/{job.steps}" if job.steps else "",
        _loss(last),
        _loss(best),
        str(best[1]) if best else "",
        plain(job.id, 120),
    )


def _loss(found: tuple[float, int] | None) -> str:
    if found is None:
        return ""
    return f"{found[0]:.3f}" if math.isfinite(found[0]) else "none"


def _joined(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
