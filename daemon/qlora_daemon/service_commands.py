"""The commands of `qlorad` that make it a service of launchd or systemd, and steer that."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from qlora_engine.job.text import plain

if TYPE_CHECKING:
    from qlora_engine.job.folder import Home

# Imported where it is used: `qlorad --help` needs none of it.
# ruff: noqa: PLC0415

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
) -> None:
    """Install the daemon as a service that starts by itself, or update it in place.

    The QLORAD_ variables of this shell become its settings. A job that trains is saved at a checkpoint and goes on.
    """
    from qlora_daemon import install as work

    owner = work.user_of(headless, user)
    home, settings = _home(owner), work.settings_in_force(os.environ)
    if show is not None:
        typer.echo(work.text_for(show.value, home, settings, user=owner), nl=False)
        return
    service = work.Service.to_install(home, _say, user=owner)
    service.install(settings, user=owner)
    _show(home)
    _say("Drop a job into " + str(home.jobs) + ", or: qlora submit job.yaml")


def uninstall(
    *,
    delete_home: Annotated[bool, typer.Option("--delete-home", help="Also jobs, runs, models and logs.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Stop the service and remove it. Runs, models and logs stay unless told."""
    import shutil

    from qlora_daemon.install import Service

    home = _home(None)
    service = Service.installed(home, _say)
    if delete_home and not yes:
        typer.confirm(f"Delete {home.path} with every run, adapter and model in it?", abort=True)
    service.uninstall()
    if delete_home:
        shutil.rmtree(home.path)
        _say(f"Deleted {home.path}")
    else:
        _say(f"Kept {home.path}. Install it again: qlorad install")


def start() -> None:
    """Start the installed service."""
    from qlora_daemon.install import Service

    home = _home(None)
    Service.installed(home, _say).start()
    _show(home)


def stop() -> None:
    """Stop the service in order: a job that trains is saved at a checkpoint. It starts again at the next login."""
    from qlora_daemon.install import Service

    Service.installed(_home(None), _say).stop()
    _say("Stopped. Start it again: qlorad start")


def restart() -> None:
    """Stop the service in order and start it again; a job that trains goes on from its checkpoint."""
    from qlora_daemon.install import Service

    home = _home(None)
    Service.installed(home, _say).restart()
    _show(home)


def status(as_json: AsJson = False) -> None:
    """Show how the service stands. Exits with 69 when something does not run."""
    import json

    from qlora_engine.host.installed import installed_service
    from qlora_engine.job.standing import as_json as for_machines
    from qlora_engine.job.standing import standing

    home = _home(None)
    if as_json:
        import dataclasses

        service = installed_service(home)
        installed = dataclasses.asdict(service) if service else None
        typer.echo(json.dumps({"installed": installed, **for_machines(standing(home))}, indent=2, default=str))
        raise typer.Exit(standing(home).exit_code)
    raise typer.Exit(_show(home))


def _show(home: Home) -> int:
    from qlora_engine.host.installed import installed_service
    from qlora_engine.job.standing import lines, standing

    service = installed_service(home)
    if service is None:
        _say("service  is not installed. Install it: qlorad install")
    else:
        known = "" if service.loaded else ", which does not know it. Start it: qlorad start"
        old = "" if service.up_to_date else ". Its file is not of this version. Update it: qlorad install"
        _say(f"service  {service.manager}{known}, {service.file}{old}")
    found = standing(home)
    for line in lines(found):
        _say(line)
    return int(found.exit_code)


def _home(user: str | None) -> Home:
    from qlora_daemon.install import home_of
    from qlora_engine.job.folder import Home
    from qlora_worker.settings import Settings

    theirs = home_of(user or os.environ.get("SUDO_USER"))  # what sudo steers is the service of who called it
    return Home(theirs) if theirs is not None and "QLORAD_HOME" not in os.environ else Settings.read().folders


def _say(text: str) -> None:
    typer.echo(plain(text))
