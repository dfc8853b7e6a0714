"""`qlora demo`: from nothing to a model that answers with SQL, through the same daemon and folder as any job."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qlora_client.answers import Answer, ask_both
from qlora_client.api import Client
from qlora_client.drop import drop_job
from qlora_client.examples import find_example
from qlora_client.follow import LOOK_SECONDS, JobTail
from qlora_client.live import LiveView
from qlora_client.models import add_model
from qlora_client.own_daemon import ServingDaemon, serving
from qlora_client.progress import Progress
from qlora_client.records import load_record
from qlora_engine.job.errors import QloradError
from qlora_engine.job.folder import Home, RunFolder
from qlora_engine.job.models import installed
from qlora_engine.job.text import plain, plain_lines

MODEL = "smollm2"
EXAMPLE = "sql-assistant"
PROMPTS_SHOWN = 2
ENOUGH = 2 / 3  # of the validation loss before training


class DemoFailed(QloradError):
    """The demo did not show what it should: the job did not end well, or learned too little."""


@dataclass(frozen=True)
class Demonstrated:
    """What the demo showed.

    Attributes:
        run: of its job.
        before, after: losses on the rows for validation, in nats a token; None if it was not validated.
        answers: of the base model and the adapted one.
    """

    run: RunFolder
    before: float | None
    after: float | None
    answers: Sequence[Answer]

    def as_dict(self) -> dict[str, object]:
        """For machines."""
        return {
            "job": self.run.id,
            "adapters": self.run.adapters,
            "validation": {"before": self.before, "after": self.after},
            "answers": [asdict(answer) for answer in self.answers],
        }


def run_demo(client: Client, console: Console) -> Demonstrated:
    """Run the demo to its end; returning means that it showed what it should.

    Args:
        client: of the home.
        console: where it is told.

    Raises:
        QloradError: a step failed; says which and what to do.
    """
    home = client.home
    example = find_example(EXAMPLE)
    _step(console, f"1. The model: {MODEL}")
    _ensure_model(home, console)
    _step(console, "2. The daemon")
    with serving(home, lambda text: console.print(Text(text))) as daemon:
        _step(console, f"3. The job: {EXAMPLE}, dropped into {home.jobs}")
        run = drop_job(example, home, daemon)
        console.print(Text(f"Accepted as {run.id}."))
        _show_others(client, run, console)
        _step(console, "4. Training")
        with _saying_that_it_stays(run, console):
            progress = _follow(run, console, daemon)
        _check_done(run, progress)
        _step(console, "5. What it learned")
        _show_losses(progress, console)
        answers = _ask(client, run, example, console)
        started_here = daemon.process is not None
    _show_what_next(home, run, answers[0], console, started_here=started_here)
    _check_learned(run, progress)
    before, after = (found and found[1] for found in (progress.first_validation, progress.validation))
    return Demonstrated(run, before, after, answers)


def learned_enough(progress: Progress) -> bool:
    """The validation loss fell by a third or more."""
    if progress.first_validation is None or progress.validation is None:
        return False
    return progress.validation[1] <= ENOUGH * progress.first_validation[1]


def _step(console: Console, title: str) -> None:
    console.print()
    console.print(Text(title, style="bold"))


def _ensure_model(home: Home, console: Console) -> None:
    found = next((model for model in installed(home.path) if model.name == MODEL), None)
    if found is not None and found.problem is None:
        console.print(Text(f"It is there: {found.path}"))
        return
    folder = add_model(MODEL, home.path, name=None, replace=found is not None, console=console)
    console.print(Text(f"Added: {folder}"))


def _show_others(client: Client, run: RunFolder, console: Console) -> None:
    """Say which unfinished jobs the daemon may train first."""
    others = [job.id for job in client.jobs(limit=200) if not job.is_final and job.id != run.id]
    if others:
        console.print(Text(f"It waits for {', '.join(others[:3])}{' and others' if others[3:] else ''}."))


@contextmanager
def _saying_that_it_stays(run: RunFolder, console: Console) -> Iterator[None]:
    """An accepted job is not lost with the program that dropped it; who ends that program should know."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        console.print(Text(f"The job {run.id} goes on when a daemon runs; `qlora cancel {run.id}` ends it."))
        raise


def _follow(run: RunFolder, console: Console, daemon: ServingDaemon) -> Progress:
    """Show the job until it is final, as long as the daemon lives."""
    tail = JobTail(run)
    check = daemon.watch()
    with LiveView(console) as view:
        try:
            while True:
                for event in tail.read():
                    view.show(event)
                if tail.ended:
                    return view.progress
                check()
                time.sleep(LOOK_SECONDS)
        finally:
            tail.close()


def _check_done(run: RunFolder, progress: Progress) -> None:
    record = load_record(run)
    if record.state == "done":
        return
    what, where, remedy = progress.trouble or ("", "", "")
    raise DemoFailed(
        f"The job {run.id} is {record.state}: {plain(what or record.reason or 'no reason was given')}",
        where=where or str(run.path),
        remedy=remedy or f"See `qlora logs {run.id}` and {run.output}.",
    )


def _show_losses(progress: Progress, console: Console) -> None:
    if progress.first_validation and progress.validation:
        before, now = progress.first_validation[1], progress.validation[1]
        fall = f", {1 - now / before:.0%} less" if before > 0 else ""
        console.print(Text(f"Validation loss: {before:.3f} before training, {now:.3f} after{fall}."))


def _ask(client: Client, run: RunFolder, example: Path, console: Console) -> list[Answer]:
    """Show what both models answer to the first held-out prompts."""
    lines = (example / "prompts.jsonl").read_text(encoding="utf-8").splitlines()[:PROMPTS_SHOWN]
    prompts = [str(json.loads(line)["prompt"]) for line in lines]
    answers = ask_both(run, prompts, client.settings)
    wanted = [str(json.loads(line).get("completion", "")) for line in lines]
    for answer, right in zip(answers, wanted, strict=True):
        console.print()
        console.print(_shown(answer, right))
    return answers


def _shown(answer: Answer, right: str) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("prompt", Text(plain_lines(answer.prompt)))
    table.add_row("base", Text(plain_lines(answer.base).strip() or "(nothing)", style="yellow"))
    table.add_row("adapted", Text(plain_lines(answer.adapted).strip() or "(nothing)", style="green"))
    if right:
        table.add_row("expected", Text(plain_lines(right), style="dim"))
    return table


def _show_what_next(home: Home, run: RunFolder, answer: Answer, console: Console, *, started_here: bool) -> None:
    qlora, qlorad = _command("qlora"), _command("qlorad")
    prompt = answer.prompt.replace("\n", "\\n")  # mlx_lm reads \n as a line break
    generate = [sys.executable, "-m", "mlx_lm", "generate", "--model", str(home.models / MODEL)]
    generate += ["--adapter-path", str(run.adapters), "--prompt", prompt]
    _step(console, "What to type next")
    console.print(Text(f"The adapters are in {run.adapters}"), soft_wrap=True)
    for purpose, command in (
        ("ask the model yourself", shlex.join(generate)),
        ("see what happened", f"{qlora} logs {run.id}"),
        *([("run the daemon for good", qlorad)] if started_here else []),
        ("train a job of your own", f"{qlora} submit job.yaml"),
    ):
        console.print(Text(f"  # {purpose}", style="dim"), soft_wrap=True)
        console.print(Text(f"  {command}"), soft_wrap=True)


def _command(name: str) -> str:
    """What to type for a console script: its name where the shell finds it, its path otherwise."""
    beside = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if found is not None and (not beside.exists() or Path(found).samefile(beside)):
        return name
    return shlex.quote(str(beside))


def _check_learned(run: RunFolder, progress: Progress) -> None:
    if learned_enough(progress):
        return
    raise DemoFailed(
        "The validation loss did not fall by a third.",
        where=str(run.events),
        remedy=f"This should not happen with the example as it comes; see `qlora logs {run.id}`.",
    )
