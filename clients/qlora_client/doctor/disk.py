"""The disk of the home: its kind, and what is free on it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from qlora_client.doctor.finding import Verdict, error, ok, warning
from qlora_client.doctor.machine import Machine
from qlora_client.doctor.open_jobs import needs
from qlora_client.doctor.topic import Topic
from qlora_engine.host.mounts import Mount, mount_of, mounts
from qlora_engine.job.text import size

GIGA = 1e9
LEAST = 500_000_000  # bytes without which nothing is accepted safely, whatever the reserve


@dataclass(frozen=True)
class DiskFacts:
    """Of the home's disk.

    Attributes:
        home: QLORAD_HOME.
        mount: the file system that holds it; None where the system does not tell.
        free: bytes that this user may fill.
        reserve: bytes below which no job starts (QLORAD_DISK_RESERVE_GB).
        needed: bytes that jobs which have not ended will write.
        jobs: how many those are.
    """

    home: Path
    mount: Mount | None
    free: int
    reserve: int = 0
    needed: int = 0
    jobs: int = 0


def look(machine: Machine) -> DiskFacts:
    """Ask the system about the disk, and the jobs about what they will write."""
    home = machine.home
    found = needs(home)
    place = _existing(home.path)
    return DiskFacts(
        home=home.path,
        mount=mount_of(place.resolve(), mounts()),
        free=shutil.disk_usage(place).free,
        reserve=int(machine.settings.disk_reserve_gb * GIGA),
        needed=sum(need.room for need in found),
        jobs=len(found),
    )


def file_system(facts: DiskFacts) -> Verdict | None:
    """A disk of this machine, with sockets and permissions, that is still there tomorrow."""
    if facts.mount is None:
        return None
    remedy = (
        "Set QLORAD_HOME to a folder on a disk of this machine, such as ~/qlora; data and models may lie elsewhere."
    )
    if facts.mount.is_network:
        return error(
            f"The home lies on a network disk ({facts.mount.kind} at {facts.mount.place}), where locks and syncs "
            "cannot be relied on.",
            remedy,
        )
    if facts.mount.is_simple:
        return error(
            f"The home lies on a disk formatted as {facts.mount.kind}, which knows neither sockets nor permissions.",
            remedy,
        )
    if facts.mount.is_volatile:
        return warning(f"The home lies in memory ({facts.mount.kind}): it is gone when the machine restarts.", remedy)
    return ok(f"{facts.mount.kind} at {facts.mount.place}")


def free_space(facts: DiskFacts) -> Verdict:
    """Room for the checkpoints of all jobs that have not ended, and for the reserve."""
    least = max(facts.reserve, LEAST)
    whose = "1 job has" if facts.jobs == 1 else f"{facts.jobs} jobs have"
    shown = f"{size(facts.free)} free"
    remedy = "Free some: `qlora clean` removes old runs and their checkpoints; `qlora models ls` shows the models."
    if facts.free < least:
        return error(f"{shown}: below {size(least)} no job starts.", remedy)
    if facts.free < least + facts.needed:
        return warning(f"{shown}, and {whose} not ended and may write {size(facts.needed)}.", remedy)
    return ok(shown)


def _existing(path: Path) -> Path:
    """The folder, or the nearest one above it that there is."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


TOPIC = Topic("Disk", look, {"file system": file_system, "free space": free_space}, reads_home=True)
