"""The curves of compared jobs in a file: training faint, validation clear."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from qlora_client.compare.compared import Compared
from qlora_client.curve import Point
from qlora_engine.job.errors import Exit, QloradError
from qlora_engine.job.text import plain

SUFFIXES = (".svg", ".png", ".pdf")
# Told apart by colour-blind people (Okabe and Ito 2008), as in a run's report.
COLOURS = ("#0072b2", "#e69f00", "#cc79a7", "#009e73", "#56b4e9", "#d55e00", "#3a3f47", "#f0e442")


class CannotPlot(QloradError):
    """The file of a plot cannot be made."""

    exit_code = Exit.CANTCREAT


def check_plot(path: Path) -> None:
    """Raise `CannotPlot` for a file that cannot be drawn into, before anything is read."""
    if path.suffix.lower() not in SUFFIXES:
        raise CannotPlot(
            f"{path.name} names no kind of plot.",
            where="--plot",
            remedy=f"End it in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.",
        )
    effective = os.access in os.supports_effective_ids  # who the process is now, not who started it
    if not os.access(path.absolute().parent, os.W_OK, effective_ids=effective):
        raise CannotPlot(
            f"The folder {path.absolute().parent} cannot be written.", where="--plot", remedy="Name another file."
        )


def draw(jobs: Sequence[Compared], path: Path) -> None:
    """Draw the losses over the micro-batches. Raises `CannotPlot` if the file cannot be written."""
    # Half a second of import that only a plot needs.
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context():
        mpl.rcdefaults()
        # Text stays text, ids do not depend on chance: the same jobs give the same file.
        mpl.rcParams.update({"font.size": 9.0, "svg.fonttype": "none", "svg.hashsalt": "qlorad", "savefig.dpi": 160})
        figure = Figure(figsize=(9.0, 4.2), layout="constrained")
        axes = figure.subplots()
        for job, colour in zip(jobs, COLOURS, strict=False):
            axes.plot(*_columns(job.losses), color=colour, alpha=0.35, linewidth=0.9)
            axes.plot(*_columns(job.validations), color=colour, marker="o", markersize=3.5, linewidth=1.6)
            axes.plot([], [], color=colour, linewidth=2.5, label=f"{job.letter}  {plain(job.id, 60)}")
        axes.set_xlabel("micro-batches")
        axes.set_ylabel("loss, nats a token")
        axes.grid(color="#d9dde3", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
        try:
            figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
        except OSError as error:
            raise CannotPlot(
                f"The plot cannot be written: {error.strerror or error}.", where=str(path), remedy="Name another file."
            ) from error


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [point.step for point in points], [point.loss for point in points]
