"""A chart of curves in a terminal's cells: Braille dots where there is one curve or colours, letters elsewhere.

By hand, since all of it is a page: two dots across and four down in each cell (Unicode, Braille patterns U+2800).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from qlora_client.curve import Point
    from qlora_client.feed import RunFeed

LEAST_WIDTH, LEAST_HEIGHT = 24, 4  # cells; below that nothing can be read from it
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row and column in a cell
_ACROSS, _DOWN = 2, 4
_LABEL = 6  # cells of a label of the upright axis
_MOST_SHOWN = 0.9  # share of the losses that the axis must hold, where the others are far above
_FAR = 2.0  # times the range of those: as at the start of a long run, or after a spike
_ABOVE = "^"  # stands at the top for a mark that lies above the axis


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        points: in the order of their steps.
        style: its colour.
        mark: the character that stands for it where dots do not.
        joined: whether its points are joined by a line; otherwise each is a mark.
    """

    points: Sequence[Point]
    style: str = ""
    mark: str = "*"
    joined: bool = True


@dataclass(frozen=True)
class _Across:
    """The axis of the steps, from 0: its end, and how many cells it has."""

    steps: float
    width: int

    def means(self, points: Sequence[Point], each: int) -> list[tuple[int, float]]:
        """The mean of the losses in each column that has some, from the left, with `each` columns in a cell."""
        sums: dict[int, tuple[float, int]] = {}
        for point in points:
            column = min(self.width * each - 1, int(point.step / self.steps * self.width * each))
            total, count = sums.get(column, (0.0, 0))
            sums[column] = (total + point.loss, count + 1)
        return [(column, total / count) for column, (total, count) in sorted(sums.items())]


@dataclass(frozen=True)
class _Scale:
    """Both axes: that of the losses holds `low` to `high` on so many cells."""

    across: _Across
    low: float
    high: float
    height: int

    def places(self, points: Sequence[Point], across: int = 1, down: int = 1) -> list[tuple[int, int]]:
        """Columns and rows of points, so many a cell; a loss beyond the axis is at its end."""
        return [(column, self.row(loss, down)) for column, loss in self.across.means(points, across)]

    def row(self, loss: float, each: int) -> int:
        """The row of a loss from the top, so many a cell."""
        share = (self.high - loss) / (self.high - self.low)
        return round(min(1.0, max(0.0, share)) * (self.height * each - 1))


_Cells = dict[tuple[int, int], tuple[str, str]]  # by row and column: character and style


def chart(series: Sequence[Series], width: int, height: int, *, steps: int = 0, dots: bool = True) -> list[Text]:
    """The curves with their axes, or nothing if they have no points or there is no room.

    Args:
        series: later ones are drawn over earlier ones.
        width, height: in cells, with the axes.
        steps: that the axis holds; the last point's where that is more.
        dots: whether joined curves are drawn in dots; else in their marks.
    """
    points = [point for one in series for point in one.points]
    if not points or width < LEAST_WIDTH or height < LEAST_HEIGHT:
        return []
    across = _Across(max([steps, 1, *(point.step for point in points)]), width - _LABEL - 2)
    shown = [loss for one in series for _, loss in across.means(one.points, _ACROSS if dots and one.joined else 1)]
    scale = _Scale(across, *_limits(sorted(shown)), height - 1)
    cells: _Cells = {}
    for one in series:
        if not one.joined:
            cells |= _marks(one, scale)
        elif dots:
            cells |= _dotted(one, scale)
        else:
            cells |= _lettered(one, scale)
    return [*_rows(cells, scale, dots=dots), _steps_axis(scale, width)]


def curve_of(feed: RunFeed, width: int, height: int, *, dots: bool = True) -> list[Text]:
    """The losses of one run, with its validations as marks; arguments as those of `chart`."""
    return chart(
        [
            Series(feed.losses.points(), "cyan"),
            Series(feed.validations.points(), "yellow", "o", joined=False),
        ],
        width,
        height,
        steps=feed.progress.steps,
        dots=dots,
    )


def _limits(losses: Sequence[float]) -> tuple[float, float]:
    """What the upright axis holds: all of the losses, unless a few are far above the others."""
    low, high = losses[0], losses[-1]
    most = losses[int(_MOST_SHOWN * (len(losses) - 1))]
    if high - low > _FAR * (most - low) > 0:
        high = most + 0.5 * (most - low)
    room = 0.02 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _joined(places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """All places on the lines from each place (column, row) to the next."""
    yield from places[:1]
    for (column, row), (to_column, to_row) in pairwise(places):
        length = max(abs(to_column - column), abs(to_row - row))
        for part in range(1, length + 1):
            share = part / length
            yield round(column + share * (to_column - column)), round(row + share * (to_row - row))


def _dotted(one: Series, scale: _Scale) -> _Cells:
    bits: dict[tuple[int, int], int] = {}
    for column, row in _joined(scale.places(one.points, _ACROSS, _DOWN)):
        cell = (row // _DOWN, column // _ACROSS)
        bits[cell] = bits.get(cell, 0) | _DOTS[row % _DOWN][column % _ACROSS]
    return {cell: (chr(0x2800 + pattern), one.style) for cell, pattern in bits.items()}


def _lettered(one: Series, scale: _Scale) -> _Cells:
    return {(row, column): (one.mark, one.style) for column, row in _joined(scale.places(one.points))}


def _marks(one: Series, scale: _Scale) -> _Cells:
    return {
        (scale.row(loss, 1), column): (one.mark if loss <= scale.high else _ABOVE, one.style)
        for column, loss in scale.across.means(one.points, 1)
    }


def _rows(cells: _Cells, scale: _Scale, *, dots: bool) -> Iterator[Text]:
    labelled = {0: scale.high, scale.height // 2: (scale.low + scale.high) / 2, scale.height - 1: scale.low}
    tick, line = ("┤", "│") if dots else ("+", "|")
    for row in range(scale.height):
        label = _number(labelled[row]) if row in labelled else ""
        text = Text().append(f"{label:>{_LABEL}} {tick if row in labelled else line}", style="dim")
        for column in range(scale.across.width):
            character, style = cells.get((row, column), (" ", ""))
            text.append(character, style=style)
        yield text


def _steps_axis(scale: _Scale, width: int) -> Text:
    last = f"{scale.across.steps:,.0f}"
    return Text(f"{' ' * (_LABEL + 2)}0{last:>{width - _LABEL - 3}}", style="dim")


def _number(value: float) -> str:
    if abs(value) >= 1e4 or 0 < abs(value) < 1e-3:
        return f"{value:.0e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def bar(share: float, width: int, *, dots: bool = True) -> Text:
    """How much of something is done or used, `width` cells wide; readable without colours.

    Args:
        share: from 0 to 1; what lies beyond counts as that.
        width: in cells.
        dots: whether the terminal can show more than ASCII.
    """
    done = round(min(1.0, max(0.0, share)) * width)
    full, rest = ("━", "╌") if dots else ("#", "-")
    return Text().append(full * done, style="green").append(rest * (width - done), style="dim")
