"""Whether the daemon is installed as a service, and how that stands: for whoever only looks."""

from __future__ import annotations

import contextlib
import pwd
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from qlora_engine.host.launchctl import Launchd
from qlora_engine.host.service import ServiceDefinition, ServiceManager, label_of
from qlora_engine.host.systemctl import Systemd
from qlora_engine.job.folder import Home

MANAGERS: dict[str, type[Launchd] | type[Systemd]] = {"launchd": Launchd, "systemd": Systemd}
_PROGRAMS = {"launchd": "launchctl", "systemd": "systemctl"}


@dataclass(frozen=True)
class InstalledService:
    """A service whose file is there.

    Attributes:
        manager: which one has it.
        file: its plist or unit.
        loaded: the manager knows it.
        running: a process of it lives.
        pid: of the daemon.
        last_exit: how the last one ended: an exit code, -N for signal N; None where it has not, or is not known.
        program: what is started.
        up_to_date: the file is what `qlorad install` of this version would write for what it starts; None where only
            root may read it, as that of the machine: it may hold a password. What is started is not known then.
        environment: of the daemon; it may hold the password of a Redis.
        user: whose service it is, for one of the machine, which needs nobody to be logged in; None for the user's own.
    """

    manager: Literal["launchd", "systemd"]
    file: Path
    loaded: bool
    running: bool
    pid: int | None
    last_exit: int | None
    program: tuple[str, ...]
    up_to_date: bool | None
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None


def manager_here(home: Home, user: str | None = None) -> ServiceManager | None:
    """launchd or systemd, whichever this system has; None where it has neither.

    Args:
        home: of the service.
        user: for one that needs no login: whose it is.
    """
    for name, program in _PROGRAMS.items():
        if shutil.which(program):
            return MANAGERS[name](label_of(home, user), headless=user is not None)
    return None


def manager_of(home: Home) -> ServiceManager | None:
    """The manager that has a service of this home: of the user, or else of the machine; None where it has none."""
    for user in (None, _owner(home)):
        manager = manager_here(home, user)
        if manager is not None and manager.file.exists():
            return manager
    return None


def _owner(home: Home) -> str | None:
    """Whose home it is: a service that needs no login is called by that."""
    with contextlib.suppress(OSError, KeyError):
        return pwd.getpwuid(home.path.stat().st_uid).pw_name
    return None


def installed_service(home: Home) -> InstalledService | None:
    """How the service of a home stands; None where none was installed.

    Raises:
        ProgramFailed: the manager does not answer.
        OSError: the service's file cannot be read, and not for want of permission.
    """
    manager = manager_of(home)
    if manager is None:
        return None
    content: bytes | None = None
    definition: ServiceDefinition | None = None
    with contextlib.suppress(PermissionError):
        content = manager.file.read_bytes()
    if content is not None:
        with contextlib.suppress(ValueError):
            definition = manager.read(content)
    state = manager.state()
    return InstalledService(
        manager="launchd" if isinstance(manager, Launchd) else "systemd",
        file=manager.file,
        loaded=state.loaded,
        running=state.running,
        pid=state.pid,
        last_exit=state.last_exit,
        program=definition.program if definition else (),
        up_to_date=None if content is None else definition is not None and manager.content(definition) == content,
        environment=definition.environment if definition else {},
        user=definition.user if definition else _owner(home) if content is None else None,
    )
