"""Jobs and models as tables, and one job in full, for a terminal or a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, ConsoleRenderable, Group, RenderableType, RenderHook, RenderResult
from rich.control import Control
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from qlora_client.lines import state_style
from qlora_engine.job.states import ACTIVE
from qlora_engine.job.text import duration, local_time, plain, size

if TYPE_CHECKING:
    from qlora_client.listing import Summary
    from qlora_client.progress import Progress
    from qlora_engine.job.events import Event
    from qlora_engine.job.folder import RunFolder
    from qlora_engine.job.models import ModelInfo
    from qlora_engine.job.record import JobRecord

_SHOWN_LOSSES = 5


def make_console(*, stderr: bool = False) -> Console:
    """A console that interprets no markup: all of its text comes from files and other processes.

    Rich leaves colours away where the output is no terminal, and with NO_COLOR. A pipe has no width: there nothing is
    cut or wrapped.
    """
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        return console
    piped = Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=10_000)
    piped.push_render_hook(_WithoutPadding())
    return piped


class _WithoutPadding(RenderHook):
    """What rich fills the columns of a table with is not for a file: its lines end where their text does."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [one if isinstance(one, Text | Control) else _Unpadded(one) for one in renderables]


@dataclass(frozen=True)
class _Unpadded:
    whole: ConsoleRenderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in console.render_lines(self.whole, options, pad=False):
            yield Segment("".join(part.text for part in line).rstrip())
            yield Segment.line()


def job_lines(jobs: Sequence[Summary], now: datetime | None = None) -> Iterator[Text]:
    """Jobs with their state, progress, age, and what speaks for and against their turn, under a line of headings.

    By hand, since rich lays out a table of 10,000 rows in eight seconds.

    Args:
        jobs: in the order of their lines.
        now: the time; by default that of the clock.
    """
    now = now or datetime.now(UTC)
    rows = [
        (
            plain(job.id, 120),
            str(job.state),
            f"{job.step}/{job.steps}" if job.steps else "",
            " ".join(duration((now - job.created).total_seconds()).split()[:2]),
            _why(job),
        )
        for job in jobs
    ]
    headings = ("ID", "STATE", "STEP", "AGE", "WHY")
    *widths, _ = (max(map(len, column)) for column in zip(headings, *rows, strict=True))
    yield Text("  ".join((*map(str.ljust, headings, widths), headings[-1])), style="dim")
    for row in rows:
        cells = [*map(str.ljust, row, widths), row[-1]]
        line = Text(f"{cells[0]}  ").append(cells[1], style=state_style(row[1]))
        line.append("  " + "  ".join(cells[2:]))
        line.rstrip()
        yield line


def _why(job: Summary) -> str:
    parts = ("urgent" if job.urgent else "", f"priority {job.priority}" if job.priority else "", plain(job.reason, 200))
    return " · ".join(filter(None, parts))


def print_jobs(console: Console, jobs: Sequence[Summary]) -> None:
    """Print `job_lines`; a terminal cuts what is wider than itself, a pipe gets all of it."""
    _print_cut(console, job_lines(jobs))


def _print_cut(console: Console, lines: Iterable[Text]) -> None:
    for line in lines:
        console.print(line, no_wrap=True, overflow="ellipsis", crop=console.is_terminal)


def model_lines(models: Sequence[ModelInfo]) -> Iterator[Text]:
    """The installed models, under a line of headings."""
    rows = [
        [
            plain("" if cell is None else cell, 80)
            for cell in (
                model.name, model.architecture, model.layers, model.hidden, model.bits, size(model.size), model.licence
            )
        ]
        for model in models
    ]  # fmt: skip
    headings = ("NAME", "ARCHITECTURE", "LAYERS", "WIDTH", "BITS", "SIZE", "LICENCE")
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    yield Text("  ".join((*map(str.ljust, headings, widths), "MADE FROM")), style="dim")
    for model, row in zip(models, rows, strict=True):
        line = Text("  ".join((*map(str.ljust, row, widths), "")))
        line.append(plain(model.problem or model.source or ""), style="red" if model.problem else "")
        line.rstrip()
        yield line


def print_models(console: Console, models: Sequence[ModelInfo]) -> None:
    """Print `model_lines`, cut as a list of jobs is."""
    _print_cut(console, model_lines(models))


def job_view(
    job: JobRecord,
    run: RunFolder,
    progress: Progress,
    reports: Sequence[Event],
    *,
    waits: str | None = None,
    curve: Sequence[Text] = (),
) -> RenderableType:
    """One job in full.

    Args:
        job: its record.
        run: its folder.
        progress: told from its events.
        reports: its last `training.report` and `validation` events, oldest first.
        waits: what it waits for, if it waits for its turn.
        curve: of its losses, drawn.
    """
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(job, run, progress, reports, waits):
        facts.add_row(name, value if isinstance(value, Text) else Text(value))
    title = Text(plain(job.id), style="bold")
    return Group(title, facts, *([Text()] if curve else []), *curve)


def _facts(
    job: JobRecord, run: RunFolder, progress: Progress, reports: Sequence[Event], waits: str | None
) -> Iterable[tuple[str, str | Text]]:
    yield "name", plain(job.name, 200)
    if job.group is not None:
        yield "sweep", plain(job.group)
    yield "state", Text(job.state, style=state_style(job.state)) + Text(f"  {plain(job.reason)}" if job.reason else "")
    if waits:
        yield "waits", plain(waits)
    if progress.phase and job.state in ACTIVE:
        yield "phase", plain(progress.phase, 40)
    steps = progress.steps or job.steps
    step = job.step if job.is_final else progress.step_or(job.step)
    if steps:
        yield "progress", f"step {step} of {steps} ({step / steps:.0%}), checkpoint at {job.checkpoint_step}"
    if job.state in ACTIVE and progress.seconds_left is not None:
        yield "time left", duration(progress.seconds_left)
    if progress.tokens_per_second is not None:
        yield "speed", f"{progress.tokens_per_second:,.0f} tokens/s"
    if progress.peak_gb is not None:
        limit = f", {progress.limit_gb:.1f} GB may be used" if progress.limit_gb else ""
        yield "memory", f"{progress.memory_gb or 0:.2f} GB, at most {progress.peak_gb:.2f} GB{limit}"
    if losses := _losses(reports):
        yield "last losses", losses
    if progress.first_validation and progress.validation:
        (_, before), (at, now) = progress.first_validation, progress.validation
        yield "validation", f"{before:.3f} at first, {now:.3f} at step {at}" if at else f"{now:.3f} at first"
    if progress.resumed:
        yield "resumed", _resumed(*progress.resumed)
    yield "attempts", f"{job.attempt}" + (f", {job.crashes} crashed in a row" if job.crashes else "")
    yield "times", _times(job)
    if progress.trouble and job.state == "failed":
        yield from zip(("problem", "where", "remedy"), map(plain, progress.trouble), strict=True)
    yield from _files(run)


def _resumed(step: int, exact: bool, changed: str) -> str:
    judged = "nothing that decides rounding has changed" if exact else "rounding may differ from there on"
    return plain(f"at step {step}, {judged}{f' ({changed})' if changed else ''}")


def _losses(reports: Sequence[Event]) -> str:
    found = [
        f"{event['loss']:.3f} ({event.get('step')})"
        for event in reports
        if event["event"] == "training.report" and isinstance(event.get("loss"), float)
    ]
    return plain("  ".join(found[-_SHOWN_LOSSES:]))


def _times(job: JobRecord) -> str:
    parts = [f"accepted {local_time(job.created, date=True)}"]
    if job.started:
        parts.append(f"started {local_time(job.started, date=True)}")
    if job.ended:
        since = job.started or job.created
        parts.append(f"ended {local_time(job.ended, date=True)} after {duration((job.ended - since).total_seconds())}")
    return ", ".join(parts)


def _files(run: RunFolder) -> Iterable[tuple[str, str]]:
    """What lies in the run folder now, the result first."""
    yield "folder", _short(run.path)
    for name, path in (
        ("adapters", run.adapters),
        ("model", run.model),
        ("gguf", run.gguf),
        ("report", run.report),
        ("checkpoints", run.checkpoints),
        ("job file", run.job_file()),
        ("events", run.events),
        ("output", run.output),
    ):
        if path is not None and path.exists() and (path.is_file() or any(path.iterdir())):
            yield name, _short(path)


def _short(path: Path) -> str:
    """A path as a shell takes it, `~` in place of the user's home."""
    home = Path.home()
    return plain(f"~/{path.relative_to(home)}" if path.is_relative_to(home) else path)
