"""The daemon as a service of the operating system: what it is called, what is started, and how it stands."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from qlora_engine.job.folder import Home

LABEL = "io.qlorad.daemon"
DESCRIPTION = "qlorad: fine-tuning jobs, one at a time"
STOP_SECONDS = 120  # the daemon stops everything, a hung child included, within 110
OPEN_FILES = 8192  # launchd gives 256, which ten thousand run folders could use up
USUAL_PATH = ("/opt/homebrew/bin", "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin")


@dataclass(frozen=True)
class ServiceDefinition:
    """What a plist or a unit is made from.

    Attributes:
        label: the service's name.
        home: QLORAD_HOME, absolute; the working directory, too.
        program: what is started, absolute paths.
        environment: of the daemon, PATH and QLORAD_HOME among it.
        user: whose service it is, for one that runs without anybody logged in; None for one of the user's own.
    """

    label: str
    home: Path
    program: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None

    @property
    def output(self) -> Path:
        """Where the daemon's standard error goes. It logs elsewhere, so hardly anything ever does."""
        return self.home / "logs" / "service.err"


@dataclass(frozen=True)
class ServiceState:
    """What launchd or systemd knows of the service.

    Attributes:
        loaded: it knows the service.
        running: a process of it lives.
        pid: of the daemon.
        last_exit: how the last one ended: an exit code, -N for signal N; None where it has not, or is not known.
        where: the name that the manager uses, such as `gui/501/io.qlorad.daemon`.
    """

    loaded: bool
    running: bool = False
    pid: int | None = None
    last_exit: int | None = None
    where: str = ""


class ServiceManager(Protocol):
    """launchd or systemd, for one service. Every method raises `ProgramFailed` where the manager refuses."""

    @property
    def name(self) -> str:
        """`launchd` or `systemd`."""

    @property
    def file(self) -> Path:
        """Where the service's plist or unit belongs."""

    def content(self, definition: ServiceDefinition) -> bytes:
        """The plist or unit."""

    def read(self, content: bytes) -> ServiceDefinition:
        """The definition that a plist or unit was made from. Raises `ValueError` for anything else."""

    def state(self) -> ServiceState:
        """How the service stands."""

    def load(self) -> None:
        """Make the file known, and start the service, now and whenever the user logs in or the machine starts."""

    def unload(self) -> None:
        """Stop the service in order and forget it; returns when it has ended."""

    def start(self) -> None:
        """Start what is known; nothing if it runs."""

    def stop(self) -> None:
        """Stop it in order until it is started; returns when it has ended."""

    def restart(self) -> None:
        """Stop it in order and start it again."""


def label_of(home: Home, user: str | None = None) -> str:
    """The service's name: a second home has one of its own, and so has each user of a machine.

    Args:
        home: that it serves.
        user: for a service that needs no login: whose it is.
    """
    label = LABEL if user is None else f"{LABEL}.{user}"
    if home.path == Path(f"~{user or ''}/qlora").expanduser():
        return label
    return f"{label}.{hashlib.sha256(str(home.path).encode()).hexdigest()[:8]}"


def define(home: Home, settings: Mapping[str, str], *, user: str | None = None) -> ServiceDefinition:
    """The service of a home, run by this Python.

    Args:
        home: QLORAD_HOME.
        settings: the `QLORAD_*` variables that it is to have, but QLORAD_HOME.
        user: for a service that needs nobody to be logged in: whose it is.
    """
    python = Path(sys.executable)  # of the virtual environment: resolved, it would be one that has no qlorad
    path = dict.fromkeys((str(python.parent), *USUAL_PATH))
    environment = {**settings, "QLORAD_HOME": str(home.path), "PATH": ":".join(path)}
    if user is not None:
        environment["HOME"] = str(Path(f"~{user}").expanduser())
    program = (str(python), "-P", "-m", "qlora_daemon")
    return ServiceDefinition(label_of(home, user), home.path, program, dict(sorted(environment.items())), user)
