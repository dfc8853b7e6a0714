"""The clock: whether it can be right, and whether it jumps."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from qlora_client.doctor.finding import Verdict, error, ok, warning
from qlora_client.doctor.machine import Machine
from qlora_client.doctor.topic import Topic
from qlora_client.listing import job_ids
from qlora_engine.job.events import parse_line
from qlora_engine.job.record import utc_now
from qlora_engine.job.text import duration, local_time, many

RELEASED = datetime(2026, 11, 1, tzinfo=UTC)  # nothing here was written before
AHEAD = timedelta(minutes=2)  # clocks that are kept by a network differ by less
LATELY = timedelta(days=1)
OFTEN = 3  # times a day
TAIL = 400_000  # bytes of the log


@dataclass(frozen=True)
class ClockFacts:
    """Times, UTC.

    Attributes:
        now: by this machine's clock.
        newest: the latest that is written in the home; None where nothing is.
        jumps: when the daemon saw the clock being set, and by how many seconds.
    """

    now: datetime
    newest: datetime | None = None
    jumps: tuple[tuple[datetime, float], ...] = ()


def look(machine: Machine) -> ClockFacts:
    """Read the clock, the newest job's id and the end of the service log."""
    events = _last_events(machine.home.service_log)
    times = [time for event in events if (time := _time(event)) is not None]
    newest = next(iter(job_ids(machine.home)), "")
    with contextlib.suppress(ValueError):  # none, or a folder that somebody named so
        times.append(datetime.strptime(newest[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC))
    jumps = tuple(
        (time, float(event["seconds"]))
        for event in events
        if event["event"] == "machine.clock_set"
        and (time := _time(event))
        and isinstance(event.get("seconds"), int | float)
    )
    return ClockFacts(utc_now(), max(times, default=None), jumps)


def clock(facts: ClockFacts) -> Verdict:
    """It does not show a time before what has already been written, or before this version was made."""
    remedy = "Set it: System Settings › General › Date & Time, or `sudo timedatectl set-ntp true`."
    shown = local_time(facts.now, date=True)
    if facts.now < RELEASED:
        return error(f"It shows {shown}, which is long gone: certificates fail and jobs wait for their times.", remedy)
    if facts.newest is not None and facts.newest > facts.now + AHEAD:
        behind = duration((facts.newest - facts.now).total_seconds())
        return error(
            f"It shows {shown}, {behind} before the newest entry of the home: jobs wait for their times.", remedy
        )
    return ok(shown)


def jumps(facts: ClockFacts) -> Verdict:
    """Nothing sets it again and again."""
    lately = [by for at, by in facts.jumps if facts.now - LATELY <= at]
    if len(lately) >= OFTEN:
        return warning(
            f"It was set {len(lately)} times within a day, by up to {duration(max(map(abs, lately)))}.",
            "See to it that one program alone keeps it, and that the machine reaches a time server.",
        )
    return ok(f"set {many(len(lately), 'time')} within a day" if lately else "none within a day")


def _last_events(log: Path) -> list[dict[str, Any]]:
    """What stands at the end of the log; nothing without one."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return []
    return [event for event in map(parse_line, lines) if event is not None]


def _time(event: dict[str, Any]) -> datetime | None:
    try:
        time = datetime.fromisoformat(str(event.get("ts")))
    except ValueError:
        return None
    return time if time.tzinfo else None


TOPIC = Topic("Clock", look, {"clock": clock, "jumps": jumps}, reads_home=True)
