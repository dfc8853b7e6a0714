"""The phases of an attempt, said as they come: for the log, and for the watchdog."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from qlora_engine.job.events import EventLog
from qlora_engine.job.pulse import Pulse


@contextmanager
def phase(name: str, log: EventLog, pulse: Pulse) -> Iterator[None]:
    """Say when a phase begins and ends; one that an error ends has no end."""
    pulse.enter(name)
    log.emit("phase.started", phase=name)
    started = time.perf_counter()
    yield
    log.emit("phase.ended", phase=name, seconds=round(time.perf_counter() - started, 3))
