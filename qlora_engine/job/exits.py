"""How the training process of an attempt ended, as its worker saw it: `exit-<attempt>.json`."""

from __future__ import annotations

import signal
from datetime import datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from qlora_engine.job import durable, stored
from qlora_engine.job.formats import EXIT


class Stall(BaseModel):
    """Where a training process made no progress for too long."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: str
    step: int = Field(description="micro-batches done")

    def __str__(self) -> str:
        return f"{self.phase} at step {self.step}"


class ExitRecord(BaseModel):
    """Either an exit code or the signal that ended the process, and what the worker knows beside."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(default=EXIT.current, ge=EXIT.current, le=EXIT.current)
    attempt: int
    code: int | None
    signal: str | None
    started: datetime
    ended: datetime
    stalled: Stall | None = Field(default=None, description="the watchdog stopped it here")
    memory: str | None = Field(default=None, description="what shows that it ended for want of memory, in words")

    @classmethod
    def of(
        cls,
        returncode: int,
        *,
        attempt: int,
        started: datetime,
        ended: datetime,
        stalled: Stall | None = None,
        memory: str | None = None,
    ) -> Self:
        """From a return code as `subprocess` gives it: negative for a signal."""
        return cls(
            attempt=attempt,
            code=returncode if returncode >= 0 else None,
            signal=_name(-returncode) if returncode < 0 else None,
            started=started,
            ended=ended,
            stalled=stalled,
            memory=memory,
        )

    def store(self, path: Path) -> None:
        """Write it durably. The worker alone calls this."""
        durable.write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """Read it, or None while there is none.

        Raises:
            ValueError: it is damaged, or of a newer format.
        """
        try:
            return stored.parse(cls, path.read_bytes(), EXIT, path)[0]
        except FileNotFoundError:
            return None


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
