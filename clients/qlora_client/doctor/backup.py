"""What backups take from the home: models and checkpoints are large, change often, and can be made again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from qlora_client.doctor.finding import Verdict, info, ok
from qlora_client.doctor.machine import Machine
from qlora_client.doctor.topic import Topic
from qlora_client.listing import job_ids
from qlora_engine.host.backup import is_excluded, is_used
from qlora_engine.job.folder import Home


@dataclass(frozen=True)
class BackupFacts:
    """Of Time Machine.

    Attributes:
        copied: folders of the home that it copies and need not.
    """

    copied: tuple[Path, ...]


def look(machine: Machine) -> BackupFacts | None:
    """Ask macOS; None elsewhere, and where there are no backups."""
    if not machine.is_mac or not is_used():
        return None
    return BackupFacts(tuple(folder for folder in _large(machine.home) if not is_excluded(folder)))


def time_machine(facts: BackupFacts | None) -> Verdict | None:
    """Models and checkpoints are left out."""
    if facts is None:
        return None
    if not facts.copied:
        return ok("leaves models and checkpoints out")
    named = " ".join(f"'{path}'" for path in facts.copied)
    return info(
        f"Time Machine copies {named}.",
        f"The daemon leaves them out, unless macOS refuses; by hand: tmutil addexclusion {named}",
    )


def _large(home: Home) -> Iterator[Path]:
    """Models, what is kept of data, and the checkpoints of the newest run, which stand for those of all."""
    yield from (folder for folder in (home.models, home.tokens.parent) if folder.exists())
    checkpoints = (home.run(job).checkpoints for job in job_ids(home))
    yield from islice((folder for folder in checkpoints if folder.exists()), 1)


TOPIC = Topic("Backup", look, {"time machine": time_machine}, reads_home=True)
