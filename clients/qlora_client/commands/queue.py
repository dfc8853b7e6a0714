"""Commands that change what the queue does next: of a job, of all jobs of a sweep, or of the queue itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from qlora_client.commands.common import (
    AsJson,
    JobId,
    home,
    make_client,
    note,
    of_group,
    print_group_states,
    print_json,
)
from qlora_engine.job.states import State

if TYPE_CHECKING:
    from qlora_client.api import Client
    from qlora_engine.job.record import JobRecord

# Every command imports what it needs itself: rich, redis and pydantic cost more time than `qlora --help` may take.
# ruff: noqa: PLC0415


class TakesNumbersUnderZero(TyperCommand):
    """A command, without options that take a value, of which a word such as `-5` is an argument."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # Any: typer keeps the class of it to itself
        """As every command does it, with such words behind `--`: before it they are options that there are not."""
        end = args.index("--") if "--" in args else len(args)
        numbers = [word for word in args[:end] if re.fullmatch(r"-\d+", word)]
        if numbers:
            others = [word for word in args[:end] if word not in numbers]
            args = [*others, "--", *numbers, *args[end + 1 :]]
        return super().parse_args(ctx, args)


def hold(job: JobId, as_json: AsJson = False) -> None:
    """Let a job wait until it is released.

    A running one stops at a checkpoint. Let it go on: `qlora release ID`.
    """
    client = make_client()
    _ask(client, client.hold, job, lambda record: not record.is_final, as_json=as_json)


def release(job: JobId, as_json: AsJson = False) -> None:
    """Let a held job go on.

    It waits no longer for jobs that failed or were cancelled, and may train for its `max_runtime` again.
    """
    client = make_client()
    _ask(client, client.release, job, lambda record: record.state in (State.HELD, State.STOPPING), as_json=as_json)


def retry(job: JobId, as_json: AsJson = False) -> None:
    """Let a job that failed or was cancelled go on.

    From its checkpoint, as the same job. Watch it: `qlora logs -f ID`.
    """
    client = make_client()
    _ask(client, client.retry, job, lambda record: record.state in (State.FAILED, State.CANCELLED), as_json=as_json)


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
    client = make_client()
    ask = partial(client.prioritise, priority=priority, urgent=urgent)
    _ask(client, ask, job, lambda record: not record.is_final, as_json=as_json, say=_place)


def pause(
    how_long: Annotated[str | None, typer.Option("--for", help="30m, 2h30m, 1d. [default: until resumed]")] = None,
    as_json: AsJson = False,
) -> None:
    """Have no job start, for a time or until `qlora resume`.

    The running one stops at a checkpoint and goes on afterwards. End it: `qlora resume`.
    """
    from qlora_engine.job.when import seconds_of

    try:
        seconds = None if how_long is None else seconds_of(how_long)
    except ValueError as error:
        raise typer.BadParameter(f"{how_long!r:.40} {error}.", param_hint="--for") from None
    _print_pause(make_client().pause(seconds), as_json=as_json)


def resume(as_json: AsJson = False) -> None:
    """End a pause of the queue."""
    _print_pause(make_client().resume(), as_json=as_json)


def _place(record: JobRecord) -> str:
    return f"{'urgent, ' if record.urgent else ''}priority {record.priority}"


def _reason(record: JobRecord) -> str:
    return record.reason


def _ask(
    client: Client,
    ask: Callable[[str], JobRecord],
    job: str,
    applies: Callable[[JobRecord], bool],
    *,
    as_json: bool,
    say: Callable[[JobRecord], str] = _reason,
) -> None:
    """Ask it of a job, or of those jobs of a sweep that it applies to, and print how they stand.

    Args:
        ask: the daemon, of one job.
        job: as typed.
        applies: whether it can be asked of a job of a sweep.
        as_json: for a program.
        say: what a person is told of the one job beside its state.
    """
    from qlora_client.groups import find_group

    if (group := find_group(client.home, job)) is None:
        _print_record(ask(job), say, as_json=as_json)
        return
    of_group(group, ask, applies)
    print_group_states(client.group(group.id), as_json=as_json)


def _print_record(record: JobRecord, say: Callable[[JobRecord], str], *, as_json: bool) -> None:
    if as_json:
        print_json(record.model_dump(mode="json"))
        return
    typer.echo(f"{record.id} {record.state}")
    if said := say(record):
        note(said)


def _print_pause(what: str, *, as_json: bool) -> None:
    if as_json:
        from qlora_engine.job.pause import Pause

        pause = Pause.load(home().pause)
        print_json({"paused": pause.paused, "until": pause.until.isoformat() if pause.until else None})
    else:
        typer.echo(what)
