"""`qlora validate`: what the daemon would say of a job file, what the job needs included, without a daemon."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from qlora_client.api import job_file_in
from qlora_client.failures import report
from qlora_client.home import expanded
from qlora_engine import blas
from qlora_engine.job.errors import Exit, SystemRefused
from qlora_engine.job.members import ResolvedSweep
from qlora_engine.job.resolved import AnyResolved, ResolvedFuse, ResolvedJob
from qlora_engine.job.survey import Survey
from qlora_engine.job.sweep import label
from qlora_engine.job.text import duration, many, plain
from qlora_engine.job.verdict import ExamineRequest, Verdict, as_line, read_line
from qlora_worker.settings import Settings

SURVEY = "qlora_engine.training.survey"
SECONDS = 600.0


def validate(path: Path, settings: Settings, overrides: Sequence[str] = ()) -> Verdict:
    """Survey a job file in a process of its own, as the daemon does.

    Args:
        path: a job file, or a folder that holds one.
        settings: tell the home, the GPU lock and the BLAS library.
        overrides: `key=value` in place of what the file says.

    Raises:
        JobRejected: there is no job file.
        SystemRefused: the survey ended without an answer.
    """
    file = job_file_in(expanded(path))
    request = ExamineRequest(
        job_file=str(file.resolve()),
        home=str(settings.folders.path),
        base=str(file.absolute().parent),
        shown_as=str(path),
        overrides=tuple(overrides),
        measure=str(settings.gpu_lock_path),
    )
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", SURVEY],
            input=as_line(request).encode(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
            env=os.environ | blas.training_environment(settings.cpu_blas, None),
        )
        return read_line(Verdict, done.stdout)
    except subprocess.TimeoutExpired:
        why = f"it took longer than {SECONDS:g} seconds"
    except ValueError:
        last = next((line for line in reversed(done.stderr.decode(errors="replace").splitlines()) if line.strip()), "")
        why = f"its process ended with code {done.returncode}" + (f": {last}" if last else "")
    raise SystemRefused(
        f"The job could not be surveyed: {plain(why, 300)}.",
        where=str(path),
        remedy="Check that its model loads with mlx_lm and that its data is plain text of a sensible size.",
    )


def exit_code(verdict: Verdict) -> int:
    """0 for a job that would be accepted."""
    return int(Exit.OK) if verdict.accepts else verdict.exit_code


def as_json(verdict: Verdict) -> dict[str, object]:
    """For machines: whether it would be accepted, what was found out, or what is wrong."""
    if verdict.sweep is not None:
        return {"accepted": True, **verdict.sweep.model_dump(mode="json")}
    if verdict.job is None:
        wrong: dict[str, object] = verdict.model_dump(include={"what", "where", "remedy", "exit_code"})
        return {"accepted": False, **wrong}
    survey = verdict.survey.model_dump() if verdict.survey else None
    return {"accepted": True, "survey": survey, "job": verdict.job.model_dump(mode="json")}


def show(verdict: Verdict, console: Console) -> None:
    """Print it as a table; what is wrong with a job that would not be accepted goes to standard error."""
    if verdict.sweep is not None:
        _show_sweep(verdict.sweep, console)
        return
    if verdict.job is None:
        report(verdict.as_error())
        return
    survey = verdict.survey or Survey()
    console.print(_view(verdict.job, survey))
    for warning in survey.warnings:
        console.print(Text(f"! {plain(warning)}", style="yellow"))
    console.print(Text("It would be accepted.", style="green"))


def _show_sweep(sweep: ResolvedSweep, console: Console) -> None:
    """What the jobs have in common, as told of the first; then each with what it has of its own."""
    first = sweep.members[0]
    console.print(_view(first.job, first.survey or Survey()))
    console.print()
    console.print(_members(sweep), no_wrap=True, overflow="ellipsis", crop=console.is_terminal)
    surveys = [member.survey or Survey() for member in sweep.members]
    for warning in dict.fromkeys(warning for survey in surveys for warning in survey.warnings):
        console.print(Text(f"! {plain(warning)}", style="yellow"))
    seconds = [survey.seconds for survey in surveys]
    time = f", in about {duration(sum(filter(None, seconds)))}" if all(seconds) else ""
    count = len(sweep.members)
    console.print(Text(f"A sweep of {count} job{'s' if count > 1 else ''}{time}. The above is of the first."))
    console.print(Text("It would be accepted.", style="green"))


def _members(sweep: ResolvedSweep) -> Text:
    """A line for each job: its settings, steps, memory and time."""
    lines = []
    for number, member in enumerate(sweep.members, 1):
        survey = member.survey or Survey()
        facts = [
            many(survey.steps, "step") if survey.steps else "",
            f"{survey.peak_gb:.2f} GB" if survey.peak_gb is not None else "",
            duration(survey.seconds) if survey.seconds is not None else "",
        ]
        lines.append(f"{number:>3}  {plain(label(member.settings), 200)}  {', '.join(filter(None, facts))}".rstrip())
    return Text("\n".join(lines))


def _view(job: AnyResolved, survey: Survey) -> RenderableType:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    about = _fusing(job) if isinstance(job, ResolvedFuse) else _job(job, survey)
    for name, value in (*about, *_data(survey), *_memory(survey), *_time(survey)):
        facts.add_row(name, plain(value))
    parts = Table.grid(padding=(0, 2))
    parts.add_column(style="dim")
    parts.add_column(justify="right")
    for name, size in survey.parts.items():
        parts.add_row(f"  {name}", f"{size:.3f} GB")
    return Group(facts, parts) if survey.parts else facts


def _job(job: ResolvedJob, survey: Survey) -> Iterator[tuple[str, str]]:
    spec = job.spec
    layers = "all layers" if spec.num_layers < 0 else many(spec.num_layers, "layer")
    kind = (
        "full fine-tuning"
        if spec.fine_tune_type == "full"
        else f"{spec.fine_tune_type}, rank {spec.lora_parameters.rank}"
    )
    batch = f"{many(spec.batch_size, 'row')} × {spec.grad_accumulation_steps}"
    steps = f", {many(survey.steps, 'step')}" if survey.steps else ""
    yield "job", f"{spec.model}: {kind}, {layers}, {batch}{steps}"


def _fusing(job: ResolvedFuse) -> Iterator[tuple[str, str]]:
    made = "a GGUF file" if job.spec.export else "a model in 16 bits" if job.spec.dequantize else "a model"
    yield (
        "job",
        f"{made} of {job.model} and the {'best ' if job.spec.weights == 'best' else ''}adapters of {job.source}",
    )


def _data(survey: Survey) -> Iterator[tuple[str, str]]:
    if survey.rows is None:
        return
    about = "about " if survey.sampled else ""
    yield "rows", f"{survey.rows:,} to train on, {survey.valid or 0:,} to validate"
    if survey.sampled:
        yield "looked at", f"{survey.sampled:,} rows; the rest is estimated"
    yield "tokens", f"{about}{survey.tokens:,}, of which {survey.supervised:,} are learned"
    yield "longest row", f"{survey.longest:,} tokens"
    if survey.truncated:
        yield "cut", f"{about}{many(survey.truncated, 'row')}, {survey.lost_share or 0:.1%} of the tokens"


def _memory(survey: Survey) -> Iterator[tuple[str, str]]:
    if survey.limit_gb is None:
        return
    limit = f"{survey.limit_gb:.1f} GB may be used ({survey.limit_source}, {survey.backend})"
    yield "memory", limit if survey.peak_gb is None else f"about {survey.peak_gb:.2f} GB at most; {limit}"


def _time(survey: Survey) -> Iterator[tuple[str, str]]:
    if survey.seconds is not None:
        yield "time", f"about {duration(survey.seconds)} ({survey.seconds_source})"
