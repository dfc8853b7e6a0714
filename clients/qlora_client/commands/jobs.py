"""Commands that show a job, what it said and what came of it, and the one that ends it."""

from __future__ import annotations

from typing import Annotated

import typer

from qlora_client.commands.common import AsJson, JobId, console, make_client, note, plain_home, print_json
from qlora_engine.job.errors import Exit

# Every command imports what it needs itself: rich, redis and pydantic cost more time than `qlora --help` may take.
# ruff: noqa: PLC0415

LISTED = 50
SERVICE_LOG_LINES = 100
CANCEL_WAIT = 20.0  # seconds; the daemon promises 10


def list_jobs(
    every: Annotated[bool, typer.Option("--all", help=f"All jobs, not only the newest {LISTED}.")] = False,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first. One in full: `qlora show ID`."""
    from qlora_client.listing import overview

    listing = overview(plain_home(), None if every else LISTED)
    if as_json:
        print_json([job.record for job in listing.jobs])
    elif listing.jobs:
        from qlora_client.views import make_console, print_jobs

        print_jobs(make_console(), listing.jobs)
    if listing.unreadable:
        note(f"{len(listing.unreadable)} jobs have no readable record, among them {listing.unreadable[0]}.")
    if not listing.total:
        note("There are no jobs yet. Make one: qlora submit FILE")
    elif not every and listing.total > len(listing.jobs) + len(listing.unreadable):
        note(f"The newest {len(listing.jobs)} of {listing.total} jobs. All of them: qlora ls --all")
    if (pause := plain_home().pause).exists():
        from datetime import UTC, datetime

        from qlora_engine.job.pause import Pause

        if (queue := Pause.load(pause)).holds(datetime.now(UTC)):
            note(f"{str(queue).capitalize()}.")


def show(job: JobId, as_json: AsJson = False) -> None:
    """Show one job in full.

    State and why, progress, time left, last losses, attempts, files. What it said is in `qlora logs ID`.
    """
    client = make_client()
    record, run, progress = client.job(job), client.run(job), client.progress(job)
    if as_json:
        import dataclasses

        waits = client.waits_for(record.id)
        shown = {"progress": dataclasses.asdict(progress), "folder": str(run.path), "waits_for": waits}
        print_json({**record.model_dump(mode="json"), **shown})
        return
    from qlora_client.views import job_view

    reports = [event for event in client.events(record.id) if event["event"] == "training.report"]
    console().print(job_view(record, run, progress, reports, client.waits_for(record.id)))


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

    client = make_client()
    if follow and holder_of(client.home.daemon_lock) is None:
        note("The daemon does not run, so nothing happens until it does. Start it: qlorad")
    if job is None:
        print_service_log(client.home, console(), follow=follow, as_json=as_json, last=SERVICE_LOG_LINES)
    else:
        print_job_log(client, client.run(job), console(), follow=follow, as_json=as_json)


def write_report(
    job: JobId,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write the report of a job, as far as it has come, and print its path.

    One page that opens without a network: curves, memory, what happened, answers before and after training.
    """
    from qlora_engine.job import report_process

    path = report_process.write_report(make_client().run(job))
    typer.echo(path)
    if open_it:
        import webbrowser

        if not webbrowser.open(path.as_uri()):
            note("No browser can be opened here. Open the file yourself.")


def cancel(job: JobId, as_json: AsJson = False) -> None:
    """Cancel a job.

    A running one stops at a checkpoint first; its checkpoints stay. What it said: `qlora logs ID`.
    """
    from qlora_client.api import WaitEnded

    client = make_client()
    record = client.cancel(job)
    if not record.is_final:
        note(f"{record.id} stops at a checkpoint …")
        try:
            record = client.wait(record.id, CANCEL_WAIT)
        except WaitEnded:
            note(f"It is still {record.state}; see how it goes on: qlora logs -f {record.id}")
            raise typer.Exit(Exit.TEMPFAIL) from None
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        typer.echo(f"{record.id} {record.state}")
