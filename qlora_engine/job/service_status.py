"""How the daemon and its children stand: `state/status.json`, written by the daemon, read by clients."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from qlora_engine.job import durable
from qlora_engine.job.hindrance import Hindrance

FORMAT = 1  # for other programs; what is said is written anew at each start, and what is not known is passed over

ChildState = Literal["running", "waiting", "stopped"]


class ChildStatus(BaseModel):
    """One child process of the daemon."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    state: ChildState = Field(description="running; waiting to be started again; stopped for good")
    pid: int | None
    starts: int = Field(description="in all")
    restarts: int = Field(description="in a row, each soon after the one before")
    changed: datetime = Field(description="when it entered the state")
    last_exit: int | None = Field(description="exit code, -N for signal N; None before its first end")
    delay: float | None = Field(description="seconds that it waits for its next start")


class ServiceStatus(BaseModel):
    """The daemon, what it depends on and what it does. A newer daemon may say more."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = FORMAT
    version: str
    pid: int
    started: datetime
    queue_answers: bool
    children: list[ChildStatus]
    job: str | None = Field(description="that it follows now")
    hindrances: tuple[Hindrance, ...] = Field(default=(), description="what keeps jobs from training now")

    @classmethod
    def none(cls) -> Self:
        """Before anything was said."""
        return cls(
            version="", pid=0, started=datetime.fromtimestamp(0, UTC), queue_answers=False, children=[], job=None
        )

    def store(self, path: Path) -> None:
        """Write it atomically. The daemon alone calls this."""
        durable.write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """What the daemon last said; None if it never did, or in words that cannot be read."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            return None
