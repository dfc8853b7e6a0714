"""The commands of `qlorad` that make it a service of launchd or systemd, and steer that."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from qlora_engine.interrupts import INTERRUPTED
from qlora_engine.job.text import plain

if TYPE_CHECKING:
    from qlora_engine.job.folder import Home

# Imported where it is used: `qlorad --help` needs none of it.
# ruff: noqa: PLC0415

DEFINED = ("PATH", "HOME")  # the rest of a service's environment, if it is no setting, may be passwords of others
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Kind(StrEnum):
    """Whose file to print."""

    LAUNCHD = "launchd"
    SYSTEMD = "systemd"


def install(
    *,
    headless: Annotated[bool, typer.Option("--headless", help="Run without anybody logged in; needs root.")] = False,
    user: Annotated[str | None, typer.Option(help="Whose it is with --headless. [default: who called sudo]")] = None,
    show: Annotated[Kind | None, typer.Option("--print", help="Only print the file, on any system.")] = None,
    as_json: AsJson = False,
) -> None:
    """Install the daemon as a service, or update it.

    It starts by itself from then on. The QLORAD_ variables of this shell become its settings. A job that trains is
    saved at a checkpoint and goes on.
    """
    from qlora_daemon import install as work

    if show is not None and as_json:
        raise typer.BadParameter("it prints the file as it is, so it does not go with --json", param_hint="--print")
    owner = work.user_of(headless, user)
    home, settings = _home(owner), work.settings_in_force(os.environ)
    if show is not None:
        typer.echo(work.text_for(show.value, home, settings, user=owner), nl=False)
        return
    service = work.Service.to_install(home, _teller(as_json=as_json), user=owner)
    service.install(settings, user=owner)
    _show(home, as_json=as_json)
    if not as_json:
        _say(f"Drop a job into {home.jobs}, or: qlora submit job.yaml")


def uninstall(
    *,
    delete_home: Annotated[bool, typer.Option("--delete-home", help="Also jobs, runs, models and logs.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stop the service and remove it.

    Runs, models and logs stay unless told; a daemon that runs in a terminal must be stopped before they are deleted.
    """
    import json

    from qlora_daemon.install import Service

    home = _home(None)
    service = Service.installed(home, _teller(as_json=as_json))
    if delete_home and not yes:
        _confirm(f"Delete {home.path} with every run, adapter and model in it?")
    service.uninstall(delete_home=delete_home)
    if as_json:
        typer.echo(json.dumps({"home": str(home.path), "deleted": delete_home}, indent=2))
    elif delete_home:
        _say(f"Deleted {home.path}")
    else:
        _say(f"Kept {home.path}. Install it again: qlorad install")


def start(as_json: AsJson = False) -> None:
    """Start the installed service."""
    from qlora_daemon.install import Service

    home = _home(None)
    Service.installed(home, _teller(as_json=as_json)).start()
    _show(home, as_json=as_json)


def stop(as_json: AsJson = False) -> None:
    """Stop the service in order.

    A job that trains is saved at a checkpoint. The service starts again at the next login.
    """
    from qlora_daemon.install import Service

    home = _home(None)
    Service.installed(home, _teller(as_json=as_json)).stop()
    if as_json:
        _show(home, as_json=True)
    else:
        _say("Stopped. Start it again: qlorad start")


def restart(as_json: AsJson = False) -> None:
    """Stop the service in order and start it again.

    A job that trains goes on from its checkpoint.
    """
    from qlora_daemon.install import Service

    home = _home(None)
    Service.installed(home, _teller(as_json=as_json)).restart()
    _show(home, as_json=as_json)


def status(as_json: AsJson = False) -> None:
    """Show how the service stands.

    Exits with 69 when something does not run.
    """
    raise typer.Exit(_show(_home(None), as_json=as_json))


def _show(home: Home, *, as_json: bool) -> int:
    """Print how the service stands; returns the exit code of that."""
    from qlora_engine.host.installed import installed_service
    from qlora_engine.job import standing

    service, found = installed_service(home), standing.standing(home)
    if as_json:
        import dataclasses
        import json

        from qlora_worker.settings import is_public

        installed = dataclasses.asdict(service) if service else None
        if service is not None and installed is not None:
            installed["environment"] = {
                name: value if name in DEFINED or is_public(name) else "(not shown)"
                for name, value in service.environment.items()
            }
        typer.echo(json.dumps({"installed": installed, **standing.as_json(found)}, indent=2, default=str))
        return int(found.exit_code)
    if service is None:
        _say("service  is not installed. Install it: qlorad install")
    else:
        known = "" if service.loaded else ", which does not know it. Start it: qlorad start"
        old = {
            True: "",
            False: ". Its file is not of this version. Update it: qlorad install",
            None: ". Only root may read that: sudo qlorad status",
        }[service.up_to_date]
        _say(f"service  {service.manager}{known}, {service.file}{old}")
    for line in standing.lines(found):
        _say(line)
    return int(found.exit_code)


def _home(user: str | None) -> Home:
    from qlora_daemon.install import home_of
    from qlora_engine.job.folder import Home
    from qlora_worker.settings import Settings

    # What root steers by sudo is the service of who called it; whom `sudo -u` makes somebody else steers their own.
    called = os.environ.get("SUDO_USER") if os.geteuid() == 0 else None
    theirs = home_of(user or called)
    is_named = bool(os.environ.get("QLORAD_HOME", "").strip())
    return Home(theirs) if theirs is not None and not is_named else Settings.read().folders


def _confirm(question: str) -> None:
    """Go on only after a yes; a no, Ctrl-C and Ctrl-D end the program before anything is done."""
    try:
        typer.confirm(question, abort=True, err=True)
    except typer.Abort:
        typer.echo("Nothing was done.", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _say(text: str) -> None:
    typer.echo(plain(text))


def _teller(*, as_json: bool) -> Callable[[str], None]:
    """Says what is done: on standard output, or beside it where that is for a program."""
    return lambda text: typer.echo(plain(text), err=as_json)
