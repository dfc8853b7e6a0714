"""The shell command `qlora`: submit, watch and cancel jobs, add models."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qlora_client.failures import report, report_unexpected
from qlora_engine.job.errors import Exit, QloradError
from qlora_engine.job.folder import Home

if TYPE_CHECKING:
    from rich.console import Console

    from qlora_client.api import Client
    from qlora_engine.job.record import JobRecord

# Every command imports what it needs itself: rich, redis and pydantic cost more time than `qlora --help` may take.
# ruff: noqa: PLC0415

CLICK_USAGE = 2  # what typer exits with for a command line that is wrong; here it is sysexits' 64
LISTED = 50
SERVICE_LOG_LINES = 100
CANCEL_WAIT = 20.0  # seconds; the daemon promises 10

app = typer.Typer(
    name="qlora",
    help="Fine-tune models with QLoRA: hand jobs to the qlorad daemon, watch them, get the adapters.\n\n"
    "Start with `qlora demo`, or with `qlorad` in one terminal and `qlora submit job.yaml` in another.",
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(help="Add and list models.\n\nStart with `qlora models add smollm2`.", no_args_is_help=True)
app.add_typer(models_app, name="models")


def _print_version(wanted: bool) -> None:
    if wanted:
        from qlora_engine import __version__

        typer.echo(f"qlora {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id, or any part of it that no other has.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A job file, or a folder that holds job.yaml.")],
    again: Annotated[bool, typer.Option("--again", help="Even if a job just like it has not ended yet.")] = False,
) -> None:
    """Hand a job file to the daemon and print the job's id.

    Relative paths in the file start from its folder. Watch the job with `qlora logs -f ID`. Where the daemon does not
    answer, the job is left in the watched folder for when it runs, and no id is printed.
    """
    submitted = _client().submit_or_leave(file, again=again)
    if isinstance(submitted, str):
        typer.echo(submitted)
        _note(f"Watch it: qlora logs -f {submitted}")
        return
    _note(f"{submitted.reason.what} The job waits in {submitted.path} and is taken from there, once.")
    _note("Start the daemon: qlorad. Then look: qlora ls")


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A job file, or a folder that holds job.yaml.")],
    as_json: AsJson = False,
) -> None:
    """Say what a job file needs before it is submitted: data, memory, time, and what is wrong with it.

    Nothing is submitted, and no daemon is needed. Then: `qlora submit FILE`.
    """
    from qlora_client.validate import as_json as for_machines
    from qlora_client.validate import exit_code, show
    from qlora_client.validate import validate as look
    from qlora_worker.settings import Settings

    verdict = look(file, Settings.read())
    if as_json:
        _print_json(for_machines(verdict))
    else:
        show(verdict, _console())
    raise typer.Exit(exit_code(verdict))


@app.command("ls")
def list_jobs(
    every: Annotated[bool, typer.Option("--all", help=f"All jobs, not only the newest {LISTED}.")] = False,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first. One in full: `qlora show ID`."""
    from qlora_client.listing import overview

    listing = overview(_plain_home(), None if every else LISTED)
    if as_json:
        _print_json([job.record for job in listing.jobs])
    elif listing.jobs:
        from qlora_client.views import make_console, print_jobs

        print_jobs(make_console(), listing.jobs)
    if listing.unreadable:
        _note(f"{len(listing.unreadable)} jobs have no readable record, among them {listing.unreadable[0]}.")
    if not listing.total:
        _note("There are no jobs yet. Make one: qlora submit FILE")
    elif not every and listing.total > len(listing.jobs) + len(listing.unreadable):
        _note(f"The newest {len(listing.jobs)} of {listing.total} jobs. All of them: qlora ls --all")
    if (pause := _plain_home().pause).exists():
        from datetime import UTC, datetime

        from qlora_engine.job.pause import Pause

        if (queue := Pause.load(pause)).holds(datetime.now(UTC)):
            _note(f"{str(queue).capitalize()}.")


@app.command()
def show(job: JobId, as_json: AsJson = False) -> None:
    """Show one job in full.

    State and why, progress, time left, last losses, attempts, files. What it said is in `qlora logs ID`.
    """
    client = _client()
    record, run, progress = client.job(job), client.run(job), client.progress(job)
    if as_json:
        import dataclasses

        waits = client.waits_for(record.id)
        shown = {"progress": dataclasses.asdict(progress), "folder": str(run.path), "waits_for": waits}
        _print_json({**record.model_dump(mode="json"), **shown})
        return
    from qlora_client.views import job_view

    reports = [event for event in client.events(record.id) if event["event"] == "training.report"]
    _console().print(job_view(record, run, progress, reports, client.waits_for(record.id)))


@app.command()
def logs(
    job: Annotated[str | None, typer.Argument(metavar="ID", help="A job; without it, the service log.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended, or Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the events as JSON lines.")] = False,
) -> None:
    """Print what happened to a job or the service.

    `-f` follows it live. Cancel a job with `qlora cancel ID`.
    """
    from qlora_client.logs import print_job_log, print_service_log
    from qlora_engine.job.lock import holder_of

    client = _client()
    if follow and holder_of(client.home.daemon_lock) is None:
        _note("The daemon does not run, so nothing happens until it does. Start it: qlorad")
    if job is None:
        print_service_log(client.home, _console(), follow=follow, as_json=as_json, last=SERVICE_LOG_LINES)
    else:
        print_job_log(client, client.run(job), _console(), follow=follow, as_json=as_json)


@app.command("report")
def write_report(
    job: JobId,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write the report of a job, as far as it has come, and print its path.

    One page that opens without a network: curves, memory, what happened, answers before and after training.
    """
    from qlora_engine.job import report_process

    path = report_process.write_report(_client().run(job))
    typer.echo(path)
    if open_it:
        import webbrowser

        if not webbrowser.open(path.as_uri()):
            _note("No browser can be opened here. Open the file yourself.")


@app.command()
def cancel(job: JobId, as_json: AsJson = False) -> None:
    """Cancel a job.

    A running one stops at a checkpoint first; its checkpoints stay. What it said: `qlora logs ID`.
    """
    from qlora_client.api import WaitEnded

    client = _client()
    record = client.cancel(job)
    if not record.is_final:
        _note(f"{record.id} stops at a checkpoint …")
        try:
            record = client.wait(record.id, CANCEL_WAIT)
        except WaitEnded:
            _note(f"It is still {record.state}; see how it goes on: qlora logs -f {record.id}")
            raise typer.Exit(Exit.TEMPFAIL) from None
    if as_json:
        _print_json(record.model_dump(mode="json"))
    else:
        typer.echo(f"{record.id} {record.state}")


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show how the service stands: the daemon, its processes, the queue, the jobs.

    Exits with 69 when something does not run. What happened: `qlora logs`.
    """
    from qlora_client import status as service

    found = service.standing(_home())
    if as_json:
        _print_json(service.as_json(found))
    else:
        for line in service.lines(found):
            typer.echo(line)
    raise typer.Exit(found.exit_code)


@app.command()
def hold(job: JobId, as_json: AsJson = False) -> None:
    """Let a job wait until it is released.

    A running one stops at a checkpoint. Let it go on: `qlora release ID`.
    """
    _print_record(_client().hold(job), as_json=as_json)


@app.command()
def release(job: JobId, as_json: AsJson = False) -> None:
    """Let a held job go on.

    It waits no longer for jobs that failed or were cancelled, and may train for its `max_runtime` again.
    """
    _print_record(_client().release(job), as_json=as_json)


@app.command()
def retry(job: JobId, as_json: AsJson = False) -> None:
    """Let a job that failed or was cancelled go on from its checkpoint, as the same job."""
    _print_record(_client().retry(job), as_json=as_json)


@app.command()
def prioritise(
    job: JobId,
    priority: Annotated[
        int | None, typer.Argument(min=-100, max=100, metavar="[PRIORITY]", help="-100 to 100; the highest goes first.")
    ] = None,
    *,
    urgent: Annotated[
        bool | None, typer.Option("--urgent/--not-urgent", help="Before all others; the running job stops for it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change a job's place in the queue. What waits: `qlora ls`."""
    if priority is None and urgent is None:
        raise typer.BadParameter("Give a priority, --urgent or --not-urgent.")
    _print_record(_client().prioritise(job, priority, urgent=urgent), as_json=as_json)


@app.command()
def pause(
    how_long: Annotated[str | None, typer.Option("--for", help="30m, 2h30m, 1d. [default: until resumed]")] = None,
    as_json: AsJson = False,
) -> None:
    """Have no job start; the running one stops at a checkpoint and goes on afterwards.

    End it: `qlora resume`.
    """
    from qlora_engine.job.when import seconds_of

    try:
        seconds = None if how_long is None else seconds_of(how_long)
    except ValueError as error:
        raise typer.BadParameter(f"{how_long!r:.40} {error}.", param_hint="--for") from None
    _print_pause(_client().pause(seconds), as_json=as_json)


@app.command()
def resume(as_json: AsJson = False) -> None:
    """End a pause of the queue."""
    _print_pause(_client().resume(), as_json=as_json)


def _print_record(record: JobRecord, *, as_json: bool) -> None:
    if as_json:
        _print_json(record.model_dump(mode="json"))
        return
    typer.echo(f"{record.id} {record.state}")
    if record.reason:
        _note(record.reason)


def _print_pause(what: str, *, as_json: bool) -> None:
    if as_json:
        from qlora_engine.job.pause import Pause

        pause = Pause.load(_home().pause)
        _print_json({"paused": pause.paused, "until": pause.until.isoformat() if pause.until else None})
    else:
        typer.echo(what)


@models_app.command("add")
def add_model(
    source: Annotated[str, typer.Argument(metavar="NAME_OR_PATH", help="`smollm2`, or the path of a .gguf file.")],
    name: Annotated[str | None, typer.Option(help="The name that job files use. [default: the file's]")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the model of that name.")] = False,
) -> None:
    """Add a model, after which `model: NAME` works in job files.

    What is there: `qlora models ls`.
    """
    from qlora_client.models import add_model as add

    folder = add(source, _home().path, name=name, replace=replace, console=_console())
    typer.echo(f"Added {folder.name}: {folder}")
    _note(f"Write `model: {folder.name}` in a job file.")


@models_app.command("ls")
def list_models(as_json: AsJson = False) -> None:
    """List the models of this home. Add one: `qlora models add smollm2`."""
    import dataclasses

    from qlora_engine.job.models import installed

    models = installed(_home().path)
    if as_json:
        _print_json([dataclasses.asdict(model) for model in models])
    elif models:
        from qlora_client.views import models_table

        _console().print(models_table(models))
    else:
        _note("There are no models yet. Add a small one: qlora models add smollm2")


@app.command()
def bench(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="A job file. [default: a small job]")] = None,
    *,
    model: Annotated[str | None, typer.Option(help="Instead of the job's model.")] = None,
    data: Annotated[Path | None, typer.Option(help="Instead of the job's data: a folder with train.jsonl.")] = None,
    pairs: Annotated[int, typer.Option(min=1, max=100, help="How often each is measured.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Measured of each run, at least.")] = 5.0,
    warm_up: Annotated[float, typer.Option(min=0.0, help="Seconds of each run that do not count.")] = 3.0,
    case: Annotated[list[str] | None, typer.Option(help="padded, `packing off` or packed. [default: all]")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the result: a .svg, .png or .pdf file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the engine beside mlx_lm's trainer on this machine, with one job.

    Nothing of it stays. What it measures, and how: docs/bench.md. Without FILE: `qlora models add smollm2` first.
    """
    from qlora_client.bench import Wishes, check_plot, chosen_cases, run_bench, table
    from qlora_engine.bench.plot import draw
    from qlora_engine.bench.trainer import Effort
    from qlora_worker.settings import Settings

    if plot is not None:
        check_plot(plot)
    overrides = {key: str(value) for key, value in (("model", model), ("data", data)) if value is not None}
    wishes = Wishes(file, overrides, pairs, Effort(warm_up, seconds), chosen_cases(case or []))
    result = run_bench(wishes, Settings.read())
    if as_json:
        _print_json(result.as_dict())
    else:
        _console().print(table(result))
    if plot is not None:
        draw(result, plot)


@app.command()
def demo() -> None:
    """Teach a small model SQL, in minutes.

    Adds the model, starts a daemon if none runs, drops an example job into its folder, shows the training, and lets
    the model answer before and after. It says at its end what to type next.
    """
    from qlora_client.demo import run_demo

    run_demo(_client(), _console())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 gets question marks, not an error
    try:
        app(arguments, prog_name="qlora")
    except SystemExit as end:
        return int(Exit.USAGE) if end.code == CLICK_USAGE else _as_code(end.code)
    except KeyboardInterrupt:
        return 130
    except QloradError as error:
        return report(error)
    except Exception as error:  # noqa: BLE001  # the last place before a traceback
        return report_unexpected(error, _plain_home().logs)
    return int(Exit.OK)


def _as_code(code: object) -> int:
    return code if isinstance(code, int) else int(Exit.OK if code is None else Exit.SOFTWARE)


def _client() -> Client:
    from qlora_client.api import Client

    return Client()


def _home() -> Home:
    from qlora_worker.settings import Settings

    return Settings.read().folders


def _plain_home() -> Home:
    """The home without the settings' checks, which cost time and may be what failed."""
    return Home(Path(os.environ.get("QLORAD_HOME") or "~/qlora").expanduser().absolute())


def _console() -> Console:
    from qlora_client.views import make_console

    return make_console()


def _note(text: str) -> None:
    """Something for a person that a program which reads the output must not see."""
    from qlora_engine.job.text import plain

    typer.echo(plain(text), err=True)


def _print_json(value: object) -> None:
    import json

    typer.echo(json.dumps(value, indent=2, default=str))


if __name__ == "__main__":
    sys.exit(main())
