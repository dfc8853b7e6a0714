"""How the service stands: what the daemon last said, and whether it still lives to mean it."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

from qlora_engine.job.errors import Exit
from qlora_engine.job.folder import JOB_ID, Home
from qlora_engine.job.hindrance import Whom
from qlora_engine.job.lock import holder_of
from qlora_engine.job.pause import Pause
from qlora_engine.job.record import utc_now
from qlora_engine.job.service_status import ChildStatus, ServiceStatus

_WHOM = {
    Whom.ALL: "",
    Whom.WAITING: ": all jobs but the one that trains",
    Whom.NOT_URGENT: ": all jobs but urgent ones",
    Whom.ON_AC: ": jobs with power: ac",
    Whom.NOT_ANY: ": all jobs but those with power: any",
}


@dataclass(frozen=True)
class Standing:
    """What there is to show."""

    home: str
    daemon: dict[str, Any] | None  # what it says of itself in its lock; None when it does not run
    said: ServiceStatus | None  # None as well while it is just starting
    jobs: dict[str, int]  # by state
    pause: Pause

    @property
    def exit_code(self) -> Exit:
        """0 when all of it runs, 69 when something does not."""
        healthy = self.said is not None and self.said.queue_answers
        running = self.said is not None and all(child.state == "running" for child in self.said.children)
        return Exit.OK if healthy and running else Exit.UNAVAILABLE


def standing(home: Home) -> Standing:
    """How the service of a home stands now; needs no daemon."""
    daemon = holder_of(home.daemon_lock)
    said = ServiceStatus.load(home.status) if daemon is not None else None
    if said is not None and daemon is not None and said.pid != daemon.get("pid"):
        said = None  # an earlier daemon said it
    return Standing(str(home.path), daemon, said, _count_jobs(home), Pause.load(home.pause))


def _count_jobs(home: Home) -> dict[str, int]:
    """How many jobs are in which state; a run folder that cannot be read counts as `unreadable`."""
    try:
        names = os.listdir(home.runs)  # noqa: PTH208  # as for every list of ten thousand
    except FileNotFoundError:
        return {}
    counted: Counter[str] = Counter()
    for name in filter(JOB_ID.fullmatch, names):
        try:
            counted[str(json.loads(home.run(name).state.read_bytes())["state"])] += 1
        except (OSError, ValueError, KeyError, TypeError):
            counted["unreadable"] += 1
    return dict(sorted(counted.items()))


def as_json(found: Standing) -> dict[str, Any]:
    """For machines."""
    return {
        "home": found.home,
        "running": found.daemon is not None,
        "healthy": found.exit_code == Exit.OK,
        "paused": found.pause.holds(utc_now()),
        "service": found.said.model_dump(mode="json") if found.said else None,
        "jobs": found.jobs,
    }


def lines(found: Standing) -> list[str]:
    """For people."""
    shown = [_daemon(found)]
    if found.said is not None:
        shown.append(f"queue    {'answers' if found.said.queue_answers else 'does not answer'}")
        shown += [_child(child) for child in found.said.children]
        shown.append(f"training {found.said.job or 'nothing'}")
        shown += [f"waits    {hindrance.what}{_WHOM[hindrance.whom]}" for hindrance in found.said.hindrances]
    if found.pause.holds(utc_now()):
        shown.append(f"waits    {found.pause}")
    jobs = ", ".join(f"{count} {state}" for state, count in found.jobs.items())
    return [*shown, f"jobs     {jobs or 'none'}", f"home     {found.home}"]


def _daemon(found: Standing) -> str:
    if found.daemon is None:
        return "daemon   does not run. Start it: qlorad"
    pid = found.daemon.get("pid", "unknown")
    if found.said is None:
        return f"daemon   starts, process {pid}"
    return f"daemon   runs since {_ago(found.said)}, process {pid}, version {found.said.version}"


def _child(child: ChildStatus) -> str:
    state = {"running": "runs", "waiting": "ended", "stopped": "stopped"}[child.state]
    parts = [f"{child.name:8} {state}"]
    if child.pid is not None:
        parts.append(f"process {child.pid}")
    if child.starts > 1:
        parts.append(f"started {child.starts} times")
    if child.last_exit is not None:
        how = f"signal {-child.last_exit}" if child.last_exit < 0 else f"code {child.last_exit}"
        parts.append(f"last ended by {how}")
    if child.delay is not None:
        parts.append(f"starts again within {child.delay:g} s")
    return ", ".join(parts)


def _ago(said: ServiceStatus) -> str:
    seconds = max(0, int((utc_now() - said.started).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
