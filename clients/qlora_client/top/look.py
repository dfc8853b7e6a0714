"""What there is to see now: each look reads only what is new since the last, however much there is in all."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from qlora_client.curve import Point
from qlora_client.feed import RunFeed
from qlora_client.follow import Tail
from qlora_client.listing import Summary
from qlora_client.progress import Progress
from qlora_client.table import JobTable
from qlora_client.top.service import Service, service_of
from qlora_engine.job.states import ACTIVE, FINAL, State
from qlora_engine.job.turn import order

if TYPE_CHECKING:
    from qlora_engine.job.events import Event
    from qlora_engine.job.folder import Home

KEPT_EVENTS = 100
SHOWN_WAITING = 50
_LOG_BYTES = 262_144  # of the service log that are read at first: some hundreds of events
# What the rest of the screen shows better, or tells nobody anything.
_UNSHOWN = frozenset(
    {"phase.started", "phase.ended", "training.step", "training.report", "request.received", "request.answered"}
)


@dataclass(frozen=True)
class View:
    """All that a screen shows.

    Attributes:
        now: when it was so.
        service: the daemon and what hinders it.
        counts: jobs by state.
        active: the job that trains, or is about to.
        ended: the job that ended last; shown while none is active.
        progress, losses, validations: of `active`.
        waiting: the first of the jobs that wait, in the order of their turn; those that cannot have one come last.
        waits: how many wait in all.
        events: the last ones of note, oldest first.
    """

    now: datetime
    service: Service
    counts: Mapping[str, int]
    active: Summary | None = None
    ended: Summary | None = None
    progress: Progress = field(default_factory=Progress)
    losses: Sequence[Point] = ()
    validations: Sequence[Point] = ()
    waiting: Sequence[Summary] = ()
    waits: int = 0
    events: Sequence[Event] = ()


class Looking:
    """A home that is looked at again and again; holds three files open.

    Args:
        home: QLORAD_HOME.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._table = JobTable(home)
        self._log = Tail(home.service_log, last_bytes=_LOG_BYTES)
        self._events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._feed: RunFeed | None = None
        self._standing: _Standing | None = None

    def look(self, now: datetime | None = None) -> View:
        """What there is to see.

        Raises:
            OSError: the home cannot be read.
        """
        now = now or datetime.now(UTC)
        if self._table.look(self._read_log()) or self._standing is None:
            self._standing = _standing(self._table.jobs.values())
        jobs = self._standing
        feed = self._follow(jobs.active)
        service = service_of(self._home, now)
        shown = [Summary.of(job.record, lambda: service.hindrances, now) for job in jobs.waiting[:SHOWN_WAITING]]
        return View(
            now=now,
            service=service,
            counts=jobs.counts,
            active=jobs.active,
            ended=jobs.ended,
            progress=feed.progress if feed else Progress(),
            losses=feed.losses.points() if feed else (),
            validations=feed.validations.points() if feed else (),
            waiting=shown,
            waits=len(jobs.waiting),
            events=tuple(self._events),
        )

    def close(self) -> None:
        """Give the files back."""
        self._log.close()
        if self._feed is not None:
            self._feed.close()

    def _read_log(self) -> set[str]:
        """Take the new events; returns the jobs that they tell of."""
        named: set[str] = set()
        for event in self._log.events():
            if event["event"] == "job.state":
                named.add(str(event.get("job")))
            if event.get("level") != "debug" and event["event"] not in _UNSHOWN:
                self._events.append(event)
        return named

    def _follow(self, active: Summary | None) -> RunFeed | None:
        if self._feed is not None and (active is None or self._feed.run.id != active.id):
            self._feed.close()
            self._feed = None
        if active is not None:
            self._feed = self._feed or RunFeed(self._home.run(active.id))
            self._feed.look()
        return self._feed


@dataclass(frozen=True)
class _Standing:
    """How the jobs stand, worked out only when one has changed."""

    counts: Mapping[str, int]
    active: Summary | None
    ended: Summary | None
    waiting: Sequence[Summary]


def _standing(jobs: Collection[Summary]) -> _Standing:
    return _Standing(
        counts=Counter(job.state for job in jobs),
        active=next((job for job in jobs if job.state in ACTIVE), None),
        ended=max((job for job in jobs if job.state in FINAL), key=_end, default=None),
        waiting=sorted((job for job in jobs if job.state in _TURNS), key=_place),
    )


# The states of jobs that wait; those that wait for a person come last.
_TURNS: dict[str, int] = {State.QUEUED: 0, State.ACCEPTED: 1, State.BLOCKED: 2, State.HELD: 3}


def _place(job: Summary) -> tuple[object, ...]:
    return (_TURNS[job.state], *order(job))


def _end(job: Summary) -> str:
    return str(job.record.get("ended") or "")
