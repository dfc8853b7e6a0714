"""A comparison as lines of a terminal: the jobs, the settings that differ, the results, the curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from qlora_client.chart import Series, chart
from qlora_client.compare.compared import Compared, best, differing
from qlora_client.lines import state_style
from qlora_engine.job.text import duration, plain

# In the order of the letters; told apart by colour-blind people as far as the colours of a terminal can be.
STYLES = ("cyan", "yellow", "magenta", "green", "blue", "red", "bright_cyan", "bright_yellow")
_CURVE_LINES = 14
_WIDEST_VALUE = 28  # cells


def lines(jobs: Sequence[Compared], width: int, *, colours: bool, dots: bool) -> Iterator[Text]:
    """The page.

    Args:
        jobs: that are compared.
        width: in columns.
        colours: whether the terminal has them; curves are drawn in letters where it has none.
        dots: whether it can show more than ASCII.
    """
    winner = best(jobs)
    for job in jobs:
        line = Text().append(f"{job.letter}  ", style=f"bold {_style(job)}").append(plain(job.id, 120))
        line.append(f"  {job.state}", style=state_style(job.state))
        yield line.append("  lowest validation loss" if job is winner else "")
    yield Text()
    differ = differing(jobs)
    if not differ:
        yield Text("All settings are the same.")
    results = _results(jobs)
    yield from _table(jobs, {**{key: list(map(_value, values)) for key, values in differ.items()}, **results})
    if width:
        curves = [Series(job.losses, _style(job), job.letter) for job in jobs]
        steps = max(int(job.results["steps"] or 0) for job in jobs)
        drawn = chart(curves, width, _CURVE_LINES, steps=steps, dots=dots and colours)
        yield from ([Text(), *drawn] if drawn else [])


def _style(job: Compared) -> str:
    return STYLES["abcdefgh".index(job.letter)]


def _results(jobs: Sequence[Compared]) -> dict[str, list[str]]:
    return {name: [_result(name, job.results[name]) for job in jobs] for name in jobs[0].results}


def _result(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name == "seconds":
        return duration(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if name == "tokens/s" else f"{value:.3f}"


def _value(value: Any) -> str:
    return "–" if value is None else plain(value, _WIDEST_VALUE)


def _table(jobs: Sequence[Compared], rows: Mapping[str, Sequence[str]]) -> Iterator[Text]:
    names = max(map(len, rows))
    widths = [max(len(row[column]) for row in rows.values()) for column in range(len(jobs))]
    widths = [max(width, 1) for width in widths]
    head = Text(" " * names)
    for job, width in zip(jobs, widths, strict=True):
        head.append(f"  {job.letter:>{width}}", style=f"bold {_style(job)}")
    yield head
    for name, cells in rows.items():
        line = Text().append(f"{'time' if name == 'seconds' else plain(name):<{names}}", style="dim")
        for cell, width in zip(cells, widths, strict=True):
            line.append(f"  {cell:>{width}}")
        yield line
