"""Curves in a terminal: what is drawn fits its room and can be read without colours."""

from __future__ import annotations

import pytest

from qlora_client.chart import Series, bar, chart
from qlora_client.curve import Point

FALLING = [Point(step, 3.0 - step / 50) for step in range(1, 101)]
MARKS = [Point(0, 3.2), Point(50, 2.2), Point(100, 1.2)]


def drawn(*series: Series, width: int = 60, height: int = 10, steps: int = 0, dots: bool = True) -> list[str]:
    return [line.plain for line in chart(series, width, height, steps=steps, dots=dots)]


@pytest.mark.parametrize(("width", "height"), [(24, 4), (80, 12), (120, 30)])
@pytest.mark.parametrize("dots", [True, False])
def test_a_chart_has_the_size_that_it_is_given(width: int, height: int, dots: bool) -> None:
    """One line more and the screen scrolls; one column more and each line breaks."""
    lines = drawn(Series(FALLING), Series(MARKS, mark="o", joined=False), width=width, height=height, dots=dots)
    assert len(lines) == height
    assert max(map(len, lines)) == width


def test_a_falling_loss_falls() -> None:
    """The curve begins at the top on the left and ends at the bottom on the right, beside its numbers."""
    *rows, axis = drawn(Series(FALLING), dots=False)
    columns = [row[8:].find("*") for row in rows]
    assert columns == sorted(columns)
    assert rows[0].startswith(" 3.0")
    assert rows[-1].startswith(" 0.9")
    assert axis.split() == ["0", "100"]


def test_the_axis_holds_the_whole_run() -> None:
    """How far a run is must be seen in its curve."""
    rows = drawn(Series(FALLING), width=108, steps=400, dots=False)[:-1]
    assert max(row.rfind("*") for row in rows) == pytest.approx(8 + 25, abs=1)


def test_dots_are_joined_and_marks_are_not() -> None:
    """A few validations are measured points; nothing is known of what lies between them."""
    steep = drawn(Series([Point(1, 1.0), Point(100, 0.0)]))[:-1]
    assert all(any("\u2800" < character <= "\u28ff" for character in row) for row in steep)
    assert sum(row.count("o") for row in drawn(Series(MARKS, mark="o", joined=False))) == 3


def test_curves_can_be_told_apart_without_colours() -> None:
    """NO_COLOR, or a terminal that has none: each curve is drawn in its letter."""
    text = "\n".join(drawn(Series(FALLING, "cyan", "a"), Series(MARKS, "red", "b"), dots=False))
    assert "a" in text
    assert "b" in text
    assert text.isascii()


def test_a_spike_does_not_press_the_rest_flat() -> None:
    """One loss of a million would leave a line without a shape."""
    rows = drawn(Series([*FALLING[:50], Point(50.5, 1e6), *FALLING[50:]]), width=120)
    assert float(rows[0].split()[0]) < 10


def test_a_mark_above_the_axis_is_shown_as_such() -> None:
    """The loss before training is far above all others; it must not be read as a lower one."""
    level = [Point(step, 2.0 + (step % 2) / 10) for step in range(1, 101)]
    rows = drawn(Series(level), Series([Point(0, 9.0), Point(50, 2.05)], mark="o", joined=False))
    assert rows[0][8] == "^"
    assert sum(row.count("o") for row in rows) == 1
    assert float(rows[0].split()[0]) < 3


@pytest.mark.parametrize("losses", [[2.0], [2.0, 2.0], [0.0, 0.0], [-1e-9, 1e-9], [1e8, 2e8]])
def test_any_losses_can_be_drawn(losses: list[float]) -> None:
    """The first micro-batch is one point, and a job on one row learns it by heart."""
    assert len(drawn(Series([Point(step, loss) for step, loss in enumerate(losses)]))) == 10


def test_nothing_is_drawn_without_points_or_room() -> None:
    """An empty frame says nothing, and a chart of two lines less."""
    assert drawn(Series([])) == []
    assert drawn(Series(FALLING), width=20) == []
    assert drawn(Series(FALLING), height=3) == []


@pytest.mark.parametrize(("share", "full"), [(0, 0), (0.5, 5), (1, 10), (3, 10), (-1, 0)])
def test_a_bar_is_read_without_colours(share: float, full: int) -> None:
    """What is done and what is left are other characters, also in ASCII."""
    assert bar(share, 10).plain == "━" * full + "╌" * (10 - full)
    assert bar(share, 10, dots=False).plain == "#" * full + "-" * (10 - full)
