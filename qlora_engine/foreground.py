"""Train one job file in the foreground: `python -m qlora_engine job.yaml`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from qlora_engine import launch
from qlora_engine.job import lock
from qlora_engine.job.errors import Exit, GpuBusy, QloradError
from qlora_engine.job.events import Event, EventLog, Sink, file_sink, to_line
from qlora_engine.job.examine import examine
from qlora_engine.job.folder import RunFolder, new_job_id
from qlora_engine.job.jobfile import must_be_there
from qlora_engine.job.record import utc_now
from qlora_engine.job.report_process import report_on
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.unforeseen import explained, refused_by_system
from qlora_engine.settings import EngineSettings
from qlora_engine.wakefulness import Wakefulness

StartAgain = Callable[[Mapping[str, str]], NoReturn]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def train(
    job_file: Annotated[Path, typer.Argument(help="An mlx_lm LoRA config, with qlorad's keys if you like.")],
    run: Annotated[
        Path | None, typer.Option(help="The run folder. One that exists is gone on from. [default: ./runs/<new id>]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print events as JSON lines, no progress bar.")] = False,
) -> None:
    """Train a job in the foreground, without the daemon. Ctrl-C stops at a checkpoint."""
    try:
        settings = EngineSettings.read()
        job = _examine(job_file, settings)
        folder = _run_folder(run, job)
        start_again = partial(_start_again, sys.argv[1:] if run else [*sys.argv[1:], "--run", str(folder.path)])
        _in_its_environment(settings, folder, start_again)
        code = _train(job, folder, settings, as_json, start_again)
    except (QloradError, OSError) as caught:
        error = caught if isinstance(caught, QloradError) else refused_by_system(caught)
        if as_json:
            _print_line(json.dumps(error.as_dict()))
        print(error, file=sys.stderr)  # noqa: T201
        raise typer.Exit(error.exit_code) from None
    raise typer.Exit(code)


def _examine(job_file: Path, settings: EngineSettings) -> ResolvedJob:
    return examine(must_be_there(job_file), home=settings.folders.path, base=job_file.absolute().parent)


def _run_folder(chosen: Path | None, job: ResolvedJob) -> RunFolder:
    if chosen is None:
        runs = Path("runs").absolute()
        name = job.spec.name or Path(job.spec.model).name
        chosen = runs / new_job_id(name, utc_now(), runs)
    folder = RunFolder(chosen.expanduser().absolute())
    folder.path.mkdir(parents=True, exist_ok=True)
    if not any(folder.checkpoints.glob("step-*")):  # with one, the job must be the same, or it is refused
        job.store(folder.spec)
    return folder


def _in_its_environment(settings: EngineSettings, folder: RunFolder, start_again: StartAgain) -> None:
    """Start this program again with what MLX reads when it is imported, and the BLAS library before its own."""
    wanted = launch.training_environment(settings.cpu_blas, folder, settings.memory_share)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        start_again(wanted)


def _start_again(arguments: list[str], environment: Mapping[str, str]) -> NoReturn:
    """Become a fresh process of this program, with these variables beside those that it has."""
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "qlora_engine", *arguments], {**os.environ, **environment})  # noqa: S606


def _train(
    job: ResolvedJob, folder: RunFolder, settings: EngineSettings, as_json: bool, start_again: StartAgain
) -> int:
    holder = {"pid": os.getpid(), "job": folder.id, "attempt": 0}
    try:
        held = lock.acquire(settings.gpu_lock_path, holder, wait=2.0)
    except lock.LockHeld as error:
        raise GpuBusy(
            "Another training process of yours holds the GPU.",
            where=str(error),
            remedy="Wait for it, stop it, or submit this job to the daemon: qlora submit",
        ) from None
    with held:
        from qlora_engine.training.stop import StopRequest  # noqa: PLC0415  # after BLAS is settled

        shown, close = _output(as_json, unread=lambda: stop.request("nobody reads the output"))
        log = EventLog([file_sink(folder.events), shown], job=folder.id)
        metrics = EventLog([file_sink(folder.metrics), shown], job=folder.id)
        stop = StopRequest(announce=lambda cause: log.emit("training.stopping", cause=cause), farewell=close)
        stop.watch()
        try:
            with stop.nothing_to_lose():
                from qlora_engine.training.measured import Measured  # noqa: PLC0415
                from qlora_engine.training.run import Outcome, train  # noqa: PLC0415  # seconds of imports
                from qlora_engine.training.token_cache import TokenCache  # noqa: PLC0415

                cache = TokenCache.of(settings.folders, settings.token_cache_gb)
                known = Measured(settings.folders.measured)
            with Wakefulness(os.getpid(), log, wanted=settings.keep_awake):
                outcome = train(
                    job, folder, attempt=0, log=log, metrics=metrics, stop=stop, cache=cache, known=known,
                    memory_share=settings.memory_share,
                )  # fmt: skip
        except Exception as caught:  # noqa: BLE001  # the last chance to say what happened
            failure = explained(caught, folder.output)
            problem = {key: value for key, value in failure.as_dict().items() if key != "exit_code"}
            log.emit("training.failed", **problem)
            _report(folder, log, settings)
            raise failure from None
        else:
            if outcome is Outcome.DONE:
                _report(folder, log, settings)
        finally:
            close()
    if outcome is Outcome.SMALLER:
        with stop.nothing_to_lose():
            start_again({})  # all memory of this process is gone then; the ladder ends, so this does
    return Exit.OK if outcome is Outcome.DONE else Exit.TEMPFAIL


def _report(folder: RunFolder, log: EventLog, settings: EngineSettings) -> None:
    if settings.report:
        report_on(folder, log)


def _output(as_json: bool, *, unread: Callable[[], None]) -> tuple[Sink, Callable[[], None]]:
    """Where events are shown, and what gives the terminal back; `unread` is called when nobody reads any more."""
    if as_json:

        def print_event(event: Event) -> None:
            if not _print_line(to_line(event)):
                unread()

        return print_event, lambda: None
    from qlora_engine.display import Display  # noqa: PLC0415

    display = Display()
    return display, display.close


def _print_line(line: str) -> bool:
    """Print a line in one write, since two threads print; False when its reader has just gone away."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # What is written from here on, and what Python flushes at its end, goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True
