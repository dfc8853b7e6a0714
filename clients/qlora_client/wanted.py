"""Which jobs and which events a person asked for: by state, name and time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, Protocol

from qlora_engine.job.errors import Exit, QloradError

_WILD = frozenset("*?[")
# An id begins with the second in which its job was accepted. The clock may have been set since.
_CLOCK_ERROR = timedelta(days=1)


class BadFilter(QloradError):
    """A filter on the command line names nothing that there is."""

    exit_code = Exit.USAGE


class _Job(Protocol):
    """The part of a job's summary that decides."""

    @property
    def id(self) -> str: ...

    @property
    def state(self) -> str: ...

    @property
    def created(self) -> datetime: ...

    @property
    def record(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Wanted:
    """Which jobs are wanted; all of them, where nothing is said.

    Attributes:
        states: any of these; all where there is none.
        name: a part of the job's id or name, or a pattern for the whole of one of them (`sql-*`); in any case.
        since: accepted then or later.
    """

    states: frozenset[str] = frozenset()
    name: str = ""
    since: datetime | None = None

    def takes(self, job: _Job) -> bool:
        """Whether the job is wanted."""
        if self.states and job.state not in self.states:
            return False
        if self.since is not None and job.created < self.since:
            return False
        return not self.name or any(_fits(self.name, text) for text in (job.id, str(job.record.get("name", ""))))

    def is_older(self, job_id: str) -> bool:
        """Whether this job and all with smaller ids are too old, told without reading them."""
        if self.since is None:
            return False
        made = datetime.strptime(job_id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
        return made < self.since - _CLOCK_ERROR


EVERY = Wanted()


def _fits(pattern: str, text: str) -> bool:
    pattern, text = pattern.lower(), text.lower()
    return fnmatchcase(text, pattern) if _WILD & set(pattern) else pattern in text


@dataclass(frozen=True)
class WantedEvents:
    """Which events are wanted; all of them, where nothing is said.

    Attributes:
        names: any of these names or patterns (`training.*`).
        since: that happened then or later.
    """

    names: tuple[str, ...] = ()
    since: datetime | None = None

    def takes(self, event: Mapping[str, Any]) -> bool:
        """Whether the event is wanted; one without a time that can be read is not older than any."""
        if self.names and not any(fnmatchcase(str(event["event"]), name) for name in self.names):
            return False
        return self.since is None or not _before(event.get("ts"), self.since)


EVERY_EVENT = WantedEvents()


def _before(text: object, moment: datetime) -> bool:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return False
    return (found if found.tzinfo else found.replace(tzinfo=UTC)) < moment


def wanted_events(names: Iterable[str] = (), since: datetime | None = None) -> WantedEvents:
    """From the command line.

    Raises:
        BadFilter: a name or pattern that no event of the vocabulary has.
    """
    from qlora_engine.job.vocabulary import EVENTS  # noqa: PLC0415  # `qlora ls` needs none of it

    asked = tuple(names)
    for name in asked:
        if not any(fnmatchcase(known, name) for known in EVENTS):
            import difflib  # noqa: PLC0415

            near = difflib.get_close_matches(name, EVENTS, 1, cutoff=0.75)
            raise BadFilter(
                f"No event is named {name!r:.80}.",
                where="--event",
                remedy=f"Did you mean {near[0]}?" if near else "docs/events.md lists all of them.",
            )
    return WantedEvents(asked, since)


def moment(text: str | None, now: datetime) -> datetime | None:
    """A time on the command line: how long ago (`90m`, `2h`, `3d`), or a time (`2026-12-01 22:00`, local).

    Raises:
        BadFilter: it is neither.
    """
    if text is None:
        return None
    from qlora_engine.job.when import moment_of, seconds_of  # noqa: PLC0415  # few commands need it

    try:
        return now - timedelta(seconds=seconds_of(text))
    except ValueError:
        pass  # not how long ago
    try:
        return moment_of(text)
    except ValueError:
        raise BadFilter(
            f"{text!r:.80} is no time.",
            where="--since",
            remedy="Say how long ago, such as 90m, 2h or 3d, or a local time such as '2026-12-01 22:00'.",
        ) from None
