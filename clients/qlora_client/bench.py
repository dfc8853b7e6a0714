"""`qlora bench`: the engine beside mlx_lm's own trainer, under the GPU lock, as a table, JSON or a plot."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from qlora_client.api import job_file_in
from qlora_client.home import expanded
from qlora_client.signals import ended_by_signals
from qlora_client.views import make_console
from qlora_client.wanted import BadFilter
from qlora_engine.bench.jobs import read_bench_job
from qlora_engine.bench.result import BenchResult, Case, Comparison, Measurement
from qlora_engine.bench.run import COMPARED, Bench, Progress, Turn
from qlora_engine.bench.trainer import Effort
from qlora_engine.job import lock
from qlora_engine.job.errors import GpuBusy
from qlora_engine.job.text import plain
from qlora_worker.settings import Settings

LOCK_WAIT = 2.0  # seconds; whoever looks at the lock holds it for an instant


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for."""

    job_file: Path | None
    overrides: dict[str, Any]
    pairs: int
    effort: Effort
    cases: Sequence[Case]


def run_bench(wishes: Wishes, settings: Settings) -> BenchResult:
    """Measure; says on standard error what is under way.

    Raises:
        GpuBusy: something else trains.
        JobRejected: (or a subclass) the job cannot be used.
        BenchFailed: a trainer did not get far enough.
    """
    with ended_by_signals(), tempfile.TemporaryDirectory(prefix="qlora-bench-") as work:
        file = None if wishes.job_file is None else job_file_in(expanded(wishes.job_file))
        job = read_bench_job(file, wishes.overrides, home=settings.folders.path, work=Path(work))
        with _gpu(settings.gpu_lock_path) as held, _shown(make_console(stderr=True), wishes.pairs) as tell:
            return Bench(
                job=job,
                cases=wishes.cases,
                pairs=wishes.pairs,
                effort=wishes.effort,
                work=Path(work),
                logs=settings.folders.logs,
                cpu_blas=settings.cpu_blas,
                lock=held.descriptor,
                tell=tell,
            ).run()


def chosen_cases(names: Sequence[str]) -> list[Case]:
    """The cases of these names, in their own order; all without a name."""
    possible = list(COMPARED)
    for name in names:
        if name not in possible:
            raise BadFilter(
                f"{name!r:.40} is not a case of a bench.", where="--case", remedy=f"Name one of {', '.join(possible)}."
            )
    return [case for case in possible if not names or case in names]


@contextmanager
def _gpu(path: Path) -> Iterator[lock.HeldLock]:
    holder = {"pid": os.getpid(), "job": "qlora bench"}
    try:
        held = lock.acquire(path, holder, wait=LOCK_WAIT)
    except lock.LockHeld as error:
        who = plain(error.holder.get("job", "a process that has not named itself"), 100)
        raise GpuBusy(
            f"The GPU is in use by {who} (process {plain(error.holder.get('pid', 'unknown'), 20)}), "
            "and a measurement beside it would mean nothing.",
            where=str(path),
            remedy="Wait until it has ended, or end it: `qlora cancel ID` for a job; then try again.",
        ) from None
    with held:
        yield held


@contextmanager
def _shown(console: Console, pairs: int) -> Iterator[Progress]:
    """A line for each run that is measured, and on a terminal a spinner with the one under way."""
    status = console.status(Text("starting")) if console.is_terminal else None

    def tell(pair: int, turn: Turn, done: Measurement | None) -> None:
        words = f"pair {pair + 1} of {pairs}: {turn.words}"
        if done is not None:
            console.print(Text(f"{words}: {_speed(done.tokens_per_second)}, {done.peak_gb:.2f} GB"))
        elif status is not None:
            status.update(Text(words))

    if status is None:
        yield tell
        return
    with status:
        yield tell


def table(result: BenchResult) -> RenderableType:
    """The result for a person."""
    shown = Table(box=None, padding=(0, 2), header_style="dim")
    shown.add_column("CASE")
    for heading in ("MLX_LM", "ENGINE", "RATIO", "FROM", "TO", "MLX_LM GB", "ENGINE GB"):
        shown.add_column(heading, justify="right")
    for comparison in result.comparisons:
        shown.add_row(*_cells(comparison))
    first = result.as_dict()
    pairs = len(result.comparisons[0].pairs)
    machine = result.machine
    return Group(
        shown,
        Text(
            f"{first['ratio']:.2f} × mlx_lm ({first['case']}; median of {pairs} pair{'s' if pairs > 1 else ''}, "
            f"{first['ratio_min']:.2f} to {first['ratio_max']:.2f}) on {plain(machine.get('device', '?'), 80)}",
            style="bold",
        ),
        Text("Speeds are supervised targets a second, GB the peak of MLX's memory. See docs/bench.md.", style="dim"),
    )


def _cells(comparison: Comparison) -> list[str]:
    ratios = sorted(comparison.ratios)
    speeds = [_speed(comparison.speed(trainer)) for trainer in ("mlx_lm", "engine")]
    peaks = [f"{comparison.peak_gb(trainer):.2f}" for trainer in ("mlx_lm", "engine")]
    ratio = comparison.as_dict()["ratio"]
    return [comparison.case, *speeds, f"{ratio:.2f} ×", f"{ratios[0]:.2f}", f"{ratios[-1]:.2f}", *peaks]


def _speed(value: float) -> str:
    return f"{value:,.0f} tokens/s" if value >= 100 else f"{value:.1f} tokens/s"
