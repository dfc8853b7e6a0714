"""Commands that show a job, what it said and what came of it, and the one that ends it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from qlora_client import completion
from qlora_client.commands.common import (
    AsJson,
    JobId,
    console,
    make_client,
    note,
    of_group,
    plain_home,
    print_group_states,
    print_json,
)
from qlora_client.terminal import has_screen
from qlora_engine.job.errors import Exit, WrongState
from qlora_engine.job.states import State

if TYPE_CHECKING:
    from qlora_client.api import Client
    from qlora_client.listing import Overview
    from qlora_client.wanted import Wanted
    from qlora_engine.job.folder import Home
    from qlora_engine.job.record import JobRecord

# Every command imports what it needs itself: rich, redis and pydantic cost more time than `qlora --help` may take.
# ruff: noqa: PLC0415

LISTED = 50
SERVICE_LOG_LINES = 100
WIDEST_CURVE, CURVE_LINES = 120, 10  # cells
CANCEL_WAIT = 20.0  # seconds; the daemon promises 10


def list_jobs(
    *,
    every: Annotated[bool, typer.Option("--all", help=f"All jobs, not only the newest {LISTED}.")] = False,
    states: Annotated[
        list[State] | None, typer.Option("--state", help="Only jobs in this state; may be given again.")
    ] = None,
    name: Annotated[
        str, typer.Option(help="Only jobs with this in their id or name; or a pattern for all of it, 'sql-*'.")
    ] = "",
    since: Annotated[
        str | None, typer.Option(help="Only jobs accepted since: 90m, 2h, 3d ago, or a local time.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep the list up to date, until q.")] = False,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first. One in full: `qlora show ID`."""
    from datetime import UTC, datetime

    from qlora_client.listing import in_lines, overview
    from qlora_client.wanted import EVERY, Wanted, moment

    if watch and as_json:
        raise typer.BadParameter("it is for a terminal, so it does not go with --json", param_hint="--watch")
    wanted = Wanted(frozenset(map(str, states or ())), name, moment(since, datetime.now(UTC)))
    if watch and has_screen():
        from qlora_client.watch import watch_jobs

        watch_jobs(plain_home(), console(), wanted, None if every else LISTED)
        return
    together = wanted == EVERY and not as_json  # who asks for some jobs wants to see those
    listing = overview(plain_home(), None if every else LISTED, wanted, together=together)
    if as_json:
        print_json([job.record for job in listing.jobs])
    elif listing.jobs:
        from qlora_client.views import make_console, print_jobs

        lines = in_lines(listing.jobs) if together else listing.jobs
        print_jobs(make_console(), lines)
        if any(line.jobs is not None for line in lines):
            note("A sweep is one line. Its jobs, the best first: qlora show ID")
    if watch:
        note("The output is no terminal, so this is the list as it is now.")
    _note_the_rest(listing, wanted, every=every)


def _note_the_rest(listing: Overview, wanted: Wanted, *, every: bool) -> None:
    """What the list does not show."""
    from datetime import UTC, datetime

    from qlora_client.dropped import folder_notes
    from qlora_client.listing import NO_JOBS
    from qlora_client.wanted import EVERY

    if listing.unreadable:
        count, first = len(listing.unreadable), listing.unreadable[0]
        many = f"{count} jobs have no readable record, among them {first}."
        note(f"{many if count > 1 else f'{first} has no readable record.'} Why: qlora show {first}")
    if not listing.total:
        note(NO_JOBS)
    elif wanted != EVERY:
        _note_fitting(len(listing.jobs), listing.total, every=every)
    elif not every and listing.total > len(listing.jobs) + len(listing.unreadable):
        note(f"The newest {len(listing.jobs)} of {listing.total} jobs. All of them: qlora ls --all")
    if wanted == EVERY:
        for line in folder_notes(plain_home(), listing.jobs[0].created if listing.jobs else None):
            note(line)
        if any(job.state == "queued" for job in listing.jobs):
            _note_daemon(plain_home())
    if (pause := plain_home().pause).exists():
        from qlora_engine.job.pause import Pause

        if (queue := Pause.load(pause)).holds(datetime.now(UTC)):
            note(f"{str(queue).capitalize()}.")


def _note_daemon(home: Home) -> None:
    """Say that none runs, to whoever looks at a job that waits for its turn."""
    import contextlib

    from qlora_engine.job.lock import holder_of

    with contextlib.suppress(OSError):  # whether one runs is not known then
        if holder_of(home.daemon_lock) is None:
            note("The daemon does not run, so nothing starts until it does. Start it: qlorad")


def _note_fitting(fit: int, total: int, *, every: bool) -> None:
    if not fit:
        note(f"None of {total} jobs fits." if total > 1 else "The one job that there is does not fit.")
    elif fit == LISTED and not every:
        note(f"The newest {fit} that fit. All of them: qlora ls --all with the same options")


def show(job: JobId, as_json: AsJson = False) -> None:
    """Show one job in full, or the jobs of a sweep, the best first.

    State and why, progress, time left, losses and their curve, attempts, files. What it said is in `qlora logs ID`.
    """
    from qlora_client.feed import feed_of
    from qlora_client.groups import as_json as group_as_json
    from qlora_client.groups import find_group

    client = make_client()
    if (group := find_group(client.home, job)) is not None:
        if as_json:
            print_json(group_as_json(group))
            return
        from qlora_client.group_view import print_group

        print_group(console(), group)
        return
    record, run = client.job(job), client.run(job)
    feed = feed_of(run)
    waits = client.waits_for(record.id)
    if as_json:
        import dataclasses

        shown = {"progress": dataclasses.asdict(feed.progress), "reports": list(feed.reports)}
        print_json({**record.model_dump(mode="json"), **shown, "folder": str(run.path), "waits_for": waits})
        return
    from qlora_client.chart import curve_of
    from qlora_client.views import job_view

    out = console()
    width = min(out.width, WIDEST_CURVE)
    curve = curve_of(feed, width, CURVE_LINES, dots=not out.options.ascii_only) if out.is_terminal else []
    out.print(job_view(record, run, feed.progress, feed.reports, waits=waits, curve=curve))
    if waits:
        _note_daemon(client.home)


def logs(
    job: Annotated[
        str | None,
        typer.Argument(metavar="ID", help="A job; without it, the service log.", autocompletion=completion.job_ids),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended, or Ctrl-C.")] = False,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--event",
            help="Only events with this name, or pattern ('training.*'); may be given again.",
            autocompletion=completion.event_names,
        ),
    ] = None,
    since: Annotated[str | None, typer.Option(help="Only what happened since: 90m, 2h, 3d ago, or a time.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the events as JSON lines.")] = False,
) -> None:
    """Print what happened to a job or the service.

    `-f` follows it live. Cancel a job with `qlora cancel ID`.
    """
    from datetime import UTC, datetime

    from qlora_client.logs import print_job_log, print_service_log
    from qlora_client.wanted import moment, wanted_events
    from qlora_engine.job.lock import holder_of

    wanted = wanted_events(names or (), moment(since, datetime.now(UTC)))
    client = make_client()
    run = None if job is None else client.run(job)
    if follow and holder_of(client.home.daemon_lock) is None:
        note("The daemon does not run, so nothing happens until it does. Start it: qlorad")
    if run is None:
        if not client.home.service_log.exists():
            note("Nothing has happened in this home yet. Start the daemon: qlorad")
        last = None if since else SERVICE_LOG_LINES
        print_service_log(client.home, console(), follow=follow, as_json=as_json, last=last, wanted=wanted)
    else:
        print_job_log(client, run, console(), follow=follow, as_json=as_json, wanted=wanted)


def write_report(
    job: JobId,
    open_it: Annotated[
        bool | None, typer.Option("--open/--no-open", help="Open it in the browser, as it is on a desktop.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the report of a job as far as it has come, and open it.

    Prints its path. It is one page that needs no network: curves, memory, what happened, answers before and after
    training. It is not opened by itself where there is no desktop, or the output is no terminal.
    """
    from qlora_client.desktop import has_desktop, open_page
    from qlora_engine.job import report_process

    client = make_client()
    run = client.run(job)
    if run.state.exists() and client.job(run.id).kind == "fuse":
        raise WrongState(
            f"{run.id} fuses what another job has learned, so it has no curves.",
            where=str(run.path),
            remedy=f"`qlora show {run.id}` says where the model is; the report is of the job that trained.",
        )
    path = report_process.write_report(run)
    if as_json:
        print_json({"report": str(path)})
    else:
        typer.echo(path)
    if open_it is None:
        open_it = not as_json and sys.stdout.isatty() and has_desktop()
    if open_it and not open_page(path):
        note("No browser can be opened here. Open the file yourself.")


def cancel(job: JobId, as_json: AsJson = False) -> None:
    """Cancel a job, or all jobs of a sweep that have not ended.

    A running one stops at a checkpoint first; its checkpoints stay. What it said: `qlora logs ID`.
    """
    from qlora_client.groups import find_group

    client = make_client()
    if (group := find_group(client.home, job)) is not None:
        of_group(group, client.cancel, lambda record: not record.is_final)
        for record in [one.job for one in client.group(group.id).members if not one.job.is_final]:
            _wait_until_stopped(client, record, as_json=as_json)
        print_group_states(client.group(group.id), as_json=as_json)
        return
    record = client.cancel(job)
    if not record.is_final:
        record = _wait_until_stopped(client, record, as_json=as_json)
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        typer.echo(f"{record.id} {record.state}")


def _wait_until_stopped(client: Client, record: JobRecord, *, as_json: bool) -> JobRecord:
    from qlora_client.api import WaitEnded

    note(f"{record.id} stops at a checkpoint …")
    try:
        return client.wait(record.id, CANCEL_WAIT)
    except WaitEnded:
        record = client.job(record.id)
        if as_json:
            print_json(record.model_dump(mode="json"))
        note(f"It is still {record.state}; see how it goes on: qlora logs -f {record.id}")
        raise typer.Exit(Exit.TEMPFAIL) from None
