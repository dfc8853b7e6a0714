"""A Mac that nobody watches: whether it stays awake, and comes back by itself when its power does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qlora_client.doctor.finding import Verdict, info, ok, warning
from qlora_client.doctor.machine import Machine
from qlora_client.doctor.topic import Topic
from qlora_engine.host.energy import PLUGGED, Energy, energy
from qlora_engine.host.installed import installed_service
from qlora_engine.host.login import encrypted, logs_in
from qlora_engine.host.power import power
from qlora_engine.job.errors import ProgramFailed


@dataclass(frozen=True)
class UnattendedFacts:
    """Of a Mac.

    Attributes:
        plugged: pmset's settings while it is plugged in, by name; those that mean nothing on it are missing.
        portable: it has a battery.
        encrypted: FileVault is on; None where that is not known.
        logs_in: who is logged in by the machine itself; None for nobody.
        service: agent, of the user, daemon, of the machine, or None where there is none.
    """

    plugged: Mapping[str, int] = field(default_factory=dict)
    portable: bool = False
    encrypted: bool | None = None
    logs_in: str | None = None
    service: str | None = None


def look(machine: Machine) -> UnattendedFacts | None:
    """Ask macOS's programs; None elsewhere."""
    if not machine.is_mac:
        return None
    try:
        installed = installed_service(machine.home)
    except (ProgramFailed, OSError):
        installed = None  # the topic of the service says so
    source = power()
    settings: Energy = energy() or {}
    return UnattendedFacts(
        plugged=settings.get(PLUGGED, {}),
        portable=source is not None and source.percent is not None and "Battery Power" in settings,
        encrypted=encrypted(),
        logs_in=logs_in(),
        service=None if installed is None else "agent" if installed.user is None else "daemon",
    )


def sleep(facts: UnattendedFacts | None) -> Verdict | None:
    """It does not go to sleep between jobs: asleep, it takes none."""
    if facts is None or "sleep" not in facts.plugged:
        return None
    minutes = facts.plugged["sleep"]
    if minutes == 0:
        return ok("never, while plugged in")
    what = f"It sleeps {minutes} min after it was last used; awake while a job trains, asleep it takes none."
    remedy = "Have it stay awake while plugged in; the display may go dark: sudo pmset -c sleep 0"
    return info(what, remedy) if facts.portable else warning(what, remedy)


def low_power(facts: UnattendedFacts | None) -> Verdict | None:
    """It is not slowed down on purpose while plugged in."""
    if facts is None or "lowpowermode" not in facts.plugged:
        return None
    if facts.plugged["lowpowermode"] == 1:
        return warning("Low Power Mode is on while plugged in: training is slower.", "sudo pmset -c lowpowermode 0")
    return ok("off")


def power_failure(facts: UnattendedFacts | None) -> Verdict | None:
    """It starts again by itself when power is back; a portable one has its battery."""
    if facts is None or "autorestart" not in facts.plugged:
        return None
    if facts.plugged["autorestart"] == 0:
        return warning("It stays off after a power failure.", "sudo pmset -a autorestart 1")
    return ok("starts again by itself")


def file_vault(facts: UnattendedFacts | None) -> Verdict | None:
    """A start does not wait for a password."""
    if facts is None or facts.encrypted is None:
        return None
    if not facts.encrypted:
        return ok("off")
    return info(
        "FileVault is on: after a start, nothing runs until somebody has typed a password.",
        "Before a restart that is planned: sudo fdesetup authrestart. For a machine out of reach, weigh it against "
        "what the disk holds.",
    )


def login(facts: UnattendedFacts | None) -> Verdict | None:
    """The service needs no login, or there is one by itself."""
    if facts is None or facts.service is None or facts.encrypted:
        return None  # with FileVault the password that unlocks the disk logs in, too
    if facts.service == "daemon":
        return ok("not needed")
    if facts.logs_in is None:
        return info(
            "After a restart the service waits until you log in.",
            "Have it run without: sudo qlorad install --headless --user NAME. Or log in automatically: System Settings "
            "› Users & Groups.",
        )
    return ok(f"{facts.logs_in}, by itself")


TOPIC = Topic(
    "Unattended",
    look,
    {
        "sleep": sleep,
        "low power mode": low_power,
        "power failure": power_failure,
        "filevault": file_vault,
        "login": login,
    },
)
