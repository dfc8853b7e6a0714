"""The service: what launchd or systemd has of it, what it starts, and how its daemon stands."""

from __future__ import annotations

import getpass
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from qlora_client.doctor.finding import Verdict, error, info, ok, warning
from qlora_client.doctor.machine import Machine, System
from qlora_client.doctor.topic import Topic
from qlora_engine import __version__
from qlora_engine.host.installed import InstalledService, installed_service
from qlora_engine.host.program import run
from qlora_engine.job.errors import Exit, ProgramFailed
from qlora_engine.job.folder import Home
from qlora_engine.job.lock import holder_of
from qlora_engine.job.service_status import ServiceStatus

SECONDS = 2.0
BOOTED = Path("/run/systemd/system")  # sd_booted(3)
_ENDS = {
    int(Exit.CONFIG): "a setting cannot be used",
    int(Exit.UNAVAILABLE): "another daemon serves this home, or Valkey does not start",
    int(Exit.NOPERM): "a folder may not be read or written",
    int(Exit.OSERR): "the system refused something",
    126: "its program may not be run",
    127: "its program is missing",
    -9: "it was killed, by the system for want of memory or by somebody",
    -6: "it was aborted",
}


@dataclass(frozen=True)
class Daemon:
    """A daemon that serves this home now.

    Attributes:
        pid: of it.
        version: that it says it is; empty while it starts.
        queue_answers: as it last said.
        down: children that do not run.
    """

    pid: int | None
    version: str = ""
    queue_answers: bool = True
    down: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServiceFacts:
    """What keeps the daemon alive, and the daemon.

    Attributes:
        manager: launchd or systemd, if this machine was started by one.
        installed: None where no service of this home is.
        problem: why that is not known.
        program_exists: what the service starts can be run.
        same_python: the service starts the Python that runs this.
        lingers: systemd keeps the user's services when nobody is logged in; None where that is of no matter.
        daemon: None where none runs.
        version: of this client.
    """

    system: System
    manager: str | None
    installed: InstalledService | None = None
    problem: ProgramFailed | None = None
    program_exists: bool = True
    same_python: bool = True
    lingers: bool | None = None
    daemon: Daemon | None = None
    version: str = __version__


def look(machine: Machine) -> ServiceFacts:
    """Ask launchd or systemd, and read what the daemon last said of itself."""
    manager = _manager(machine)
    installed, problem = None, None
    try:
        installed = installed_service(machine.home)
    except ProgramFailed as refused:
        problem = refused
    program = Path(installed.program[0]) if installed and installed.program else None
    return ServiceFacts(
        system=machine.system,
        manager=manager,
        installed=installed,
        problem=problem,
        program_exists=program is None or os.access(program, os.X_OK),
        same_python=program is None or program.parent.resolve() == Path(sys.executable).parent.resolve(),
        lingers=_lingers() if installed and installed.manager == "systemd" and installed.user is None else None,
        daemon=_daemon(machine.home),
    )


def service(facts: ServiceFacts) -> Verdict | None:
    """The service is installed, known and runs."""
    if facts.problem is not None:
        return warning(
            f"The service could not be asked: {facts.problem.what}", facts.problem.remedy or "Try again in a minute."
        )
    if facts.manager is None and facts.installed is None:
        return None
    if facts.installed is None:
        return info("Not installed: the daemon runs as long as its terminal.", "Have it kept alive: qlorad install")
    ended = _ended(facts.installed.last_exit)
    if not facts.installed.loaded:
        return error(f"{facts.installed.manager} does not know {facts.installed.file}.", "Start it: qlorad start")
    if not facts.installed.running:
        return error(
            f"It is installed and does not run{ended}.",
            "`qlora logs` says why; then `qlorad install`, or `qlorad start`.",
        )
    return ok(f"runs, process {facts.installed.pid}, {facts.installed.file}")


def last_end(facts: ServiceFacts) -> Verdict | None:
    """The daemon before this one ended in order."""
    if facts.installed is None or facts.installed.last_exit is None or not facts.installed.running:
        return None
    if facts.installed.last_exit in (0, -15):
        return ok("in order")
    return warning(
        f"It was started again{_ended(facts.installed.last_exit)}.", "`qlora logs` says what was before that."
    )


def service_file(facts: ServiceFacts) -> Verdict | None:
    """The plist or unit is what this version would write."""
    if facts.installed is None:
        return None
    if facts.installed.up_to_date is None:
        return info(f"Only root may read {facts.installed.file}.", "Whether it is of this version: sudo qlorad status")
    if not facts.installed.up_to_date:
        return warning(
            f"{facts.installed.file} is not as this version writes it.",
            "Write it anew, which keeps jobs: qlorad install",
        )
    return ok("as this version writes it")


def service_python(facts: ServiceFacts) -> Verdict | None:
    """The Python that the service starts is still there, and is this one: upgrades of Python remove the old one."""
    if facts.installed is None or not facts.installed.program:
        return None
    program = facts.installed.program[0]
    if not facts.program_exists:
        return error(
            f"The service starts {program}, which is gone, as after an upgrade of Python.",
            "Install qlorad into the new one (`make setup`, `pipx reinstall qlorad`), then `qlorad install`.",
        )
    if not facts.same_python:
        return warning(
            f"The service starts {program}, this is {sys.executable}.",
            "Run `qlorad install` from the installation that you want.",
        )
    return ok(program)


def stays(facts: ServiceFacts) -> Verdict | None:
    """On Linux: the user's services go on when the user logs out."""
    if facts.lingers is None:
        return None
    if not facts.lingers:
        return warning("The service ends when you log out.", "Have it stay: loginctl enable-linger")
    return ok("stays when you log out")


def daemon(facts: ServiceFacts) -> Verdict | None:
    """A daemon that runs is of this version, and so do its queue and its worker."""
    found = facts.daemon
    if found is None:
        if facts.installed is not None:
            return None  # the service's own check says so
        return info("None runs for this home; jobs wait.", "Start one: qlorad")
    if found.version and found.version != facts.version:
        return warning(
            f"The daemon is of version {found.version}, this client of {facts.version}.",
            "Start the new one, which keeps jobs: qlorad restart",
        )
    if found.down or not found.queue_answers:
        down = ", ".join(found.down) or "the queue"
        return error(f"The daemon runs, but not all of it: {down}.", "`qlora status` shows it, `qlora logs` says why.")
    return ok(f"runs, process {found.pid}" + (f", version {found.version}" if found.version else ", starting"))


def _manager(machine: Machine) -> str | None:
    if machine.is_mac:
        return "launchd" if shutil.which("launchctl") else None
    return "systemd" if shutil.which("systemctl") and BOOTED.is_dir() else None


def _lingers() -> bool | None:
    try:
        said = run(["loginctl", "show-user", getpass.getuser(), "--property=Linger"], timeout=SECONDS)
    except (ProgramFailed, OSError):
        return None
    return {"Linger=yes": True, "Linger=no": False}.get(said.out.strip())


def _daemon(home: Home) -> Daemon | None:
    holder = holder_of(home.daemon_lock)
    if holder is None:
        return None
    said = ServiceStatus.load(home.status)
    pid = holder.get("pid")
    if said is None or said.pid != pid:
        return Daemon(pid)  # an earlier one said it
    down = tuple(child.name for child in said.children if child.state != "running")
    return Daemon(pid, said.version, said.queue_answers, down)


def _ended(last: int | None) -> str:
    if last is None or last == 0:
        return ""
    how = f"signal {-last}" if last < 0 else f"code {last}"
    return f", after it ended with {how}" + (f" ({_ENDS[last]})" if last in _ENDS else "")


TOPIC = Topic(
    "Service",
    look,
    {
        "service": service,
        "last end": last_end,
        "service file": service_file,
        "service's python": service_python,
        "after logout": stays,
        "daemon": daemon,
    },
    reads_home=True,
)
