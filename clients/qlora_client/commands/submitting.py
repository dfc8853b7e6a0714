"""Commands that take a job file: submit it, and say what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qlora_client import completion
from qlora_client.commands.common import AsJson, console, make_client, note, print_json
from qlora_client.commands.typed import as_typed, given
from qlora_engine.job.errors import Exit

if TYPE_CHECKING:
    from qlora_client.api import Client, LeftBehind
    from qlora_client.groups import Group
    from qlora_engine.job.folder import Home

# Every command imports what it needs itself: rich, redis and pydantic cost more time than `qlora --help` may take.
# ruff: noqa: PLC0415

JobFile = Annotated[Path, typer.Argument(metavar="FILE", help="A job file, or a folder that holds job.yaml.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Another value than the file's: learning_rate=2e-5, lora_parameters.rank=16."
    ),
]


def submit(
    file: JobFile,
    *,
    values: Set = None,
    after: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="A job that must be done first.", autocompletion=completion.job_ids),
    ] = None,
    priority: Annotated[int | None, typer.Option(min=-100, max=100, help="Higher goes first.")] = None,
    urgent: Annotated[bool, typer.Option("--urgent", help="Before all others; the running job stops for it.")] = False,
    stop_worse_than: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Of a sweep: end what is so much worse than another, 0.1 for 10%."),
    ] = None,
    hold: Annotated[bool, typer.Option("--hold", help="Let it wait for `qlora release`.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended; the exit code says how.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Even if a job just like it has not ended yet.")] = False,
    as_json: AsJson = False,
) -> None:
    """Hand a job file to the daemon, and print the job's id.

    Of a sweep it is the sweep's. Relative paths in the file start from its folder. Watch the job with `qlora logs -f
    ID`. Where the daemon does not answer, the job is left in the watched folder for when it runs, and no id is printed.
    """
    options = [
        *given("--after", "after", after),
        *given("--priority", "priority", priority),
        *given("--urgent", "urgent", urgent),
        *given("--hold", "hold", hold),
        *given("--stop-worse-than", "sweep.stop_worse_than", stop_worse_than),
    ]
    overrides = [*(values or ()), *(option.override for option in options)]
    client = make_client()
    with as_typed(options):
        submitted = client.submit_or_leave(file, overrides=overrides, again=again)
    if not isinstance(submitted, str):
        say_left(submitted, client.home, wait=wait, as_json=as_json)
        return
    if not as_json:
        typer.echo(submitted)
    elif not wait:
        print_json({"job": submitted})
    from qlora_client.groups import find_group

    if (group := find_group(client.home, submitted)) is not None:
        _follow_group(client, group, hold=hold, wait=wait, as_json=as_json)
        return
    if not wait:
        note(f"It is held. Let it go on: qlora release {submitted}" if hold else f"Watch it: qlora logs -f {submitted}")
        return
    from qlora_client.waiting import exit_code, wait_until_ended

    record = wait_until_ended(client, submitted, note)
    if as_json:
        print_json(record.model_dump(mode="json"))
    raise typer.Exit(exit_code(record))


def _follow_group(client: Client, group: Group, *, hold: bool, wait: bool, as_json: bool) -> None:
    """Say what a sweep has become, or wait until all of it has ended."""
    jobs = "1 job" if len(group.members) == 1 else f"{len(group.members)} jobs"
    if not wait:
        what = f"They are held. Let them go on: qlora release {group.id}" if hold else f"Look: qlora show {group.id}"
        note(f"A sweep of {jobs}. {what}")
        return
    from qlora_client.waiting import group_exit_code, wait_until_group_ended

    ended = wait_until_group_ended(client, group, note)
    if as_json:
        from qlora_client.groups import as_json as group_as_json

        print_json(group_as_json(ended))
    raise typer.Exit(group_exit_code(ended))


def say_left(left: LeftBehind, home: Home, *, wait: bool, as_json: bool) -> None:
    """Say that a job lies in the watched folder, and why; an error for whoever would wait for its end."""
    from qlora_engine.job.lock import holder_of

    if as_json:
        print_json({"job": None, "left": str(left.path), "reason": left.reason.what})
    note(f"{left.reason.what} The job waits in {left.path} and is taken from there, once.")
    if holder_of(home.daemon_lock) is None:
        note("Start the daemon: qlorad. Then look: qlora ls")
    else:
        note("The daemon runs, so that should not be for long. Why it does not answer: qlora doctor")
    if wait:
        note("There is nothing to wait for until then.")
        raise typer.Exit(Exit.TEMPFAIL)


def validate(file: JobFile, values: Set = None, as_json: AsJson = False) -> None:
    """Say what a job file needs, and what is wrong with it.

    Rows and tokens, memory, time. Nothing is submitted, and no daemon is needed. Then: `qlora submit FILE`.
    """
    from qlora_client.validate import as_json as for_machines
    from qlora_client.validate import exit_code, show
    from qlora_client.validate import validate as look
    from qlora_worker.settings import Settings

    verdict = look(file, Settings.read(), values or ())
    if as_json:
        print_json(for_machines(verdict))
    else:
        show(verdict, console())
        if verdict.job is not None:
            note(f"Submit it: {_again('qlora submit', file, values)}")
    raise typer.Exit(exit_code(verdict))


def _again(command: str, file: Path, values: Sequence[str] | None) -> str:
    """The command with the same file and the same `--set`, as a shell takes it."""
    import shlex

    sets = [word for value in values or () for word in ("--set", value)]
    return f"{command} {shlex.join([str(file), *sets])}"
