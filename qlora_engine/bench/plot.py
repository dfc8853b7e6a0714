"""The plot of a bench: speed and peak memory of both trainers in each case, each run a point."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_engine.bench.result import TRAINERS, BenchResult, Comparison, Trainer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png", ".pdf")
# Blue and orange that colour-blind people tell apart (Okabe and Ito 2008), as in a run's report.
COLOURS: dict[Trainer, str] = {"mlx_lm": "#e69f00", "engine": "#0072b2"}
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#d9dde3",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.dpi": 160,
}
WIDTH = 0.36  # of a bar; a case is 1 wide


def draw(result: BenchResult, path: Path) -> None:
    """Draw it into a file of one of `SUFFIXES`.

    Raises:
        OSError: the file cannot be written.
    """
    # Half a second of import that only a plot needs.
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=(4.0 + 1.8 * len(result.comparisons), 3.4), layout="constrained")
        speed, memory = figure.subplots(1, 2)
        _speeds(speed, result)
        _memory(memory, result)
        speed.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2, fontsize=8)
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def _speeds(axes: Axes, result: BenchResult) -> None:
    for place, comparison in enumerate(result.comparisons):
        for trainer, at in _places(place):
            label = trainer if place == 0 else None
            axes.bar(at, comparison.speed(trainer), WIDTH, color=COLOURS[trainer], alpha=0.8, label=label)
            runs = [run.tokens_per_second for run in comparison.of(trainer)]
            axes.plot([at] * len(runs), runs, "o", color="#3a3f47", markersize=3)
        top = max(run.tokens_per_second for trainer in TRAINERS for run in comparison.of(trainer))
        axes.annotate(
            f"{comparison.as_dict()['ratio']:.3g} ×", (place, top), (0, 4), textcoords="offset points", ha="center"
        )
    axes.margins(y=0.15)
    axes.set_ylabel("useful tokens a second")
    _name_cases(axes, result.comparisons)


def _memory(axes: Axes, result: BenchResult) -> None:
    for place, comparison in enumerate(result.comparisons):
        for trainer, at in _places(place):
            axes.bar(at, comparison.peak_gb(trainer), WIDTH, color=COLOURS[trainer], alpha=0.8)
    axes.set_ylabel("peak memory of MLX, GB")
    _name_cases(axes, result.comparisons)


def _places(place: int) -> list[tuple[Trainer, float]]:
    return [(trainer, place + (index - 0.5) * (WIDTH + 0.02)) for index, trainer in enumerate(TRAINERS)]


def _name_cases(axes: Axes, comparisons: Any) -> None:
    cases: list[Comparison] = list(comparisons)
    axes.set_xticks(range(len(cases)), [comparison.case for comparison in cases])
