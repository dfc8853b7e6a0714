"""How the service stands, as far as a screen of jobs must say it: that it runs, and what keeps jobs from training."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from qlora_engine.job.hindrance import Hindrance
from qlora_engine.job.lock import holder_of
from qlora_engine.job.pause import Pause
from qlora_engine.job.service_status import ServiceStatus

if TYPE_CHECKING:
    from qlora_engine.job.folder import Home


@dataclass(frozen=True)
class Service:
    """The daemon of a home.

    Attributes:
        started: when; None while it does not run, or has not said so yet.
        troubles: what a person should know, the worst first; sentences.
        hindrances: that keep jobs from training.
    """

    started: datetime | None
    troubles: tuple[str, ...] = ()
    hindrances: tuple[Hindrance, ...] = ()


def service_of(home: Home, now: datetime) -> Service:
    """How the service of a home stands; needs no daemon."""
    holder, said = holder_of(home.daemon_lock), ServiceStatus.load(home.status)
    pause = Pause.load(home.pause)
    paused = (_sentence(str(pause)),) if pause.holds(now) else ()
    if holder is None:
        return Service(None, ("The daemon does not run. Start it: qlorad", *paused))
    if said is None or said.pid != holder.get("pid"):
        return Service(None, ("The daemon starts.", *paused))
    queue = () if said.queue_answers else ("The queue does not answer.",)
    children = tuple(f"The {child.name} does not run." for child in said.children if child.state != "running")
    hindrances = tuple(_sentence(f"jobs wait: {hindrance.what}") for hindrance in said.hindrances)
    return Service(said.started, (*queue, *children, *paused, *hindrances), said.hindrances)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
