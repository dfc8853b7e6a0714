"""Whether the queue is paused: a file in the home, so that it holds after a restart. Only the daemon writes it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from qlora_engine.job import durable
from qlora_engine.job.text import local_time

FORMAT = 1  # a newer one is read as far as it says the same: that training is to wait must not get lost
KEPT = 8  # keys of requests, to know one that comes again


@dataclass(frozen=True)
class Pause:
    """The queue's pause.

    Attributes:
        paused: nothing starts, and what ran has stopped at a checkpoint.
        until: when it ends by itself.
        asked: keys of the last requests that concerned it.
    """

    paused: bool = False
    until: datetime | None = None
    asked: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it; one that is not there or cannot be read is none: a job that waits for ever would be worse."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            value = json.loads(path.read_bytes())
            until = datetime.fromisoformat(value["until"]) if value["until"] else None
            return cls(bool(value["paused"]), until, tuple(map(str, value["asked"])))
        return cls()

    def store(self, path: Path) -> None:
        """Write it durably. The daemon alone calls this."""
        until = self.until.isoformat() if self.until else None
        asked = list(self.asked[-KEPT:])
        durable.write_json(path, {"format": FORMAT, "paused": self.paused, "until": until, "asked": asked})

    def holds(self, now: datetime) -> bool:
        """Whether nothing may start at this time."""
        return self.paused and (self.until is None or self.until > now)

    def __str__(self) -> str:
        if not self.paused:
            return "the queue is not paused"
        return f"the queue is paused until {local_time(self.until, date=True) if self.until else '`qlora resume`'}"
