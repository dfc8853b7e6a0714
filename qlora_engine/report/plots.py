"""The plots of a report, drawn by matplotlib and put into the page as SVG that follows its colours.

Drawn with colours that stand for the page's own: blue and orange and their kin, which colour-blind people tell
apart (Okabe and Ito 2008), in one form for light pages and one for dark ones.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from qlora_engine.report.notes import Note
from qlora_engine.report.read import Column, RunData, number, table
from qlora_engine.report.series import Series, shorten, smoothed, spans

# What is drawn, and the page's name for it. No two are equal, since the page replaces them by their text.
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7"
INK, GRID = "#3a3f47", "#d9dde3"
PAGE_COLOURS = {
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
    RED: "var(--red)",
    PURPLE: "var(--purple)",
    INK: "currentColor",
    GRID: "var(--grid)",
}
STYLE: dict[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 9.0,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.color": GRID,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it can be read aloud and copied, in the page's own font
}
WIDE, NARROW = (10.4, 3.6), (4.9, 3.1)
SMALL = (4.9, 2.5)
OUTLIERS = 99.0  # percentile of the losses that the axis shows in full

Plot = Markup


def loss_plot(data: RunData, notes: Sequence[Note], *, narrow: bool = False) -> Plot | None:
    """Losses of training and validation, with a time line of what happened; None without a loss."""
    columns = data.micro_batches
    raw = shorten(columns["step"], columns["loss"])
    curve = smoothed(columns["step"], columns["loss"], columns["tokens"])
    splits = {split: _validations(data, split) for split in ("valid", "test")}
    if not len(raw) and not any(len(found) for found in splits.values()):
        return None
    lanes = _lanes(notes)
    width, height = NARROW if narrow else WIDE
    with _style():
        extra = 0.24 * len(lanes) + 0.25 if lanes else 0.0
        figure = Figure(figsize=(width, height + extra), layout="constrained")
        if lanes:
            axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[height, extra])
            _draw_lanes(below, lanes)
        else:
            axes = below = figure.subplots()
        _draw_raw(axes, raw, "micro-batches")
        axes.plot(curve.step, curve.mean, color=BLUE, linewidth=1.8, label="training, smoothed")
        _draw_validations(axes, splits)
        axes.set_ylabel("loss, nats a token")
        _fit_losses(axes, raw, [curve, *splits.values()])
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2 if narrow else 5, borderaxespad=0.2, fontsize=8)
        _steps_axis(below, max(found.step[-1] for found in (raw, curve, *splits.values()) if len(found)))
        return _svg(figure, "loss-narrow" if narrow else "loss", "Loss of training and validation over micro-batches")


def small_plots(data: RunData) -> list[tuple[str, Plot]]:
    """The other plots with their titles: learning rate, gradient norm, speed and memory, where there is data."""
    names = ("step", "learning_rate", "gradient_norm", "tokens_per_second")
    reports, steps = table(data.of("training.report"), names), data.micro_batches
    norms = steps if np.isfinite(steps["gradient_norm"]).any() else reports
    drawn = [
        ("Learning rate", _line_plot("rate", "Learning rate", reports, "learning_rate", GREEN, from_zero=True)),
        ("Gradient norm", _line_plot("norm", "Gradient norm", norms, "gradient_norm", PURPLE, spread=True)),
        ("Speed", _line_plot("speed", "Tokens a second", reports, "tokens_per_second", ORANGE, from_zero=True)),
        ("Memory", _memory_plot(data)),
    ]
    return [(title, plot) for title, plot in drawn if plot is not None]


def _line_plot(
    key: str,
    label: str,
    columns: Mapping[str, Column],
    name: str,
    colour: str,
    *,
    from_zero: bool = False,
    spread: bool = False,
) -> Plot | None:
    series = shorten(columns["step"], columns[name])
    if not len(series):
        return None
    with _style():
        figure = Figure(figsize=SMALL, layout="constrained")
        axes = figure.subplots()
        if series.bucketed:
            axes.fill_between(series.step, series.low, series.high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(series.step, series.mean, color=colour, linewidth=1.4, marker=_marker(series), markersize=3)
        if spread and spans(series.low):
            axes.set_yscale("log")
        else:
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5))
            axes.set_ylim(bottom=0 if from_zero else None)
        axes.set_ylabel(label.lower())
        _steps_axis(axes, series.step[-1])
        return _svg(figure, key, f"{label} over micro-batches")


def _memory_plot(data: RunData) -> Plot | None:
    kinds = (
        ("peak_gb", "peak", RED, "-"),
        ("memory_gb", "active", BLUE, "-"),
        ("cache_gb", "cache", ORANGE, "--"),
        ("process_gb", "process", GREEN, "-."),
    )
    step = data.micro_batches["step"]
    drawn = [(shorten(step, data.micro_batches[name]), label, colour, line) for name, label, colour, line in kinds]
    drawn = [entry for entry in drawn if len(entry[0])]
    if not drawn:
        return None
    with _style():
        figure = Figure(figsize=SMALL, layout="constrained")
        axes = figure.subplots()
        for series, label, colour, line in drawn:
            axes.plot(series.step, series.high, color=colour, linestyle=line, linewidth=1.4, label=label)
        limit = number(data.last("memory.limits").get("limit_gb"))
        highest = max(series.high.max() for series, *_ in drawn)
        if limit < 4 * highest:  # further away it would press the curves flat; the page says it in words
            axes.axhline(limit, color=INK, linewidth=1, linestyle=":", label="limit")
        axes.set_ylim(bottom=0)
        axes.set_ylabel("memory, GB")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=5, borderaxespad=0.2, fontsize=8, columnspacing=1)
        _steps_axis(axes, step[-1])
        return _svg(figure, "memory", "Memory over micro-batches")


def _draw_raw(axes: Axes, raw: Series, label: str) -> None:
    if raw.bucketed:
        axes.fill_between(raw.step, raw.low, raw.high, color=BLUE, alpha=0.18, linewidth=0, label=f"{label}, range")
    else:
        axes.plot(
            raw.step, raw.mean, color=BLUE, alpha=0.35, linewidth=0.8, marker=_marker(raw), markersize=3, label=label
        )


def _validations(data: RunData, split: str) -> Series:
    found = table([event for event in data.of("validation") if event.get("split") == split], ("step", "loss"))
    return shorten(found["step"], found["loss"])


def _draw_validations(axes: Axes, splits: dict[str, Series]) -> None:
    valid, test = splits["valid"], splits["test"]
    if len(valid):
        marker = "o" if len(valid) <= 60 else None
        axes.plot(
            valid.step, valid.mean, color=ORANGE, linewidth=1.6, marker=marker, markersize=4.5, label="validation"
        )
        best = int(np.argmin(valid.low))
        axes.plot(
            valid.step[best], valid.low[best], color=RED, marker="*", markersize=12, linestyle="none", clip_on=False,
            label=f"best: {valid.low[best]:.3f} at {valid.step[best]:,.0f}",
        )  # fmt: skip
    if len(test):
        axes.plot(
            test.step, test.mean, color=PURPLE, marker="D", markersize=6, linestyle="none", clip_on=False, label="test"
        )


def _fit_losses(axes: Axes, raw: Series, others: Sequence[Series]) -> None:
    """Leave single losses that tower over all others above the plot's edge, so that the rest can be seen."""
    tops = [series.high.max() for series in others if len(series)]
    lows = [series.low.min() for series in (raw, *others) if len(series)]
    if len(raw):
        tops.append(np.percentile(raw.high, OUTLIERS))
    room = 0.05 * (max(tops) - min(lows)) or 0.1
    axes.set_ylim(min(lows) - room, max(tops) + room)


def _lanes(notes: Sequence[Note]) -> list[tuple[str, list[int], str]]:
    """Lane, steps and colour of what happened, each lane once, in the order of the first event of it."""
    lanes: dict[str, list[int]] = {}
    for note in notes:
        if note.lane is not None:
            lanes.setdefault(note.lane, []).append(note.step or 0)
    calm = {"resumed": BLUE, "stopped early": GREEN, "environment changed": PURPLE, "started over": BLUE}
    return [(lane, sorted(set(steps)), calm.get(lane, RED)) for lane, steps in lanes.items()]


def _draw_lanes(axes: Axes, lanes: Sequence[tuple[str, list[int], str]]) -> None:
    for row, (_, steps, colour) in enumerate(lanes):
        shown = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 200)).astype(int))
        at = np.asarray(steps, np.float64)[shown]
        axes.plot(at, np.full(len(at), row), color=colour, marker="o", markersize=5, linestyle="none", clip_on=False)
    axes.set_yticks(range(len(lanes)), [lane for lane, *_ in lanes], fontsize=8)
    axes.set_ylim(len(lanes) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _steps_axis(axes: Axes, last: float) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("micro-batches")
    axes.set_xlim(0, max(last, 1))


def _marker(series: Series) -> str | None:
    return "o" if len(series) <= 3 else None


@contextmanager
def _style() -> Iterator[None]:
    """Draw as written here, whatever a person's matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def _svg(figure: Figure, key: str, title: str) -> Plot:
    """The figure as an element of a page: names that no other plot has, the page's colours, the page's width."""
    written = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with mpl.rc_context({"svg.hashsalt": key}):
        FigureCanvasSVG(figure).print_svg(written, metadata=nothing)  # type: ignore[no-untyped-call]
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id|xlink:href)="(#?)', rf'\1="\2{key}-', text).replace("url(#", f"url(#{key}-")
    for drawn, named in PAGE_COLOURS.items():
        text = text.replace(drawn, named)
    head = re.compile(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>')
    return Markup(  # noqa: S704  # numbers and words of ours alone; a run's own text never enters a plot
        head.sub(
            rf'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="\1" role="img" aria-label="{title}">', text
        )
    )
