"""What is known of a job: its state, attempts, times and reason. Stored as `state.json`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from qlora_engine.job import durable
from qlora_engine.job.states import FINAL, State, check_move

FORMAT = 1


def utc_now() -> datetime:
    """The time in UTC, to the millisecond."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


class JobRecord(BaseModel):
    """A job's record. Immutable: `moved` and `noting` return a new one; only the daemon stores it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    id: str
    name: str
    state: State
    reason: str = Field(default="", description="why the job is in this state, for a person")
    priority: int = 0
    attempt: int = Field(default=0, description="how often it was given to the worker")
    crashes: int = Field(default=0, description="crashes in a row without a new checkpoint")
    stalls: dict[str, int] = Field(default={}, description="by phase, stalls in a row without a new checkpoint")
    created: datetime
    changed: datetime
    started: datetime | None = Field(default=None, description="first training process")
    ended: datetime | None = None
    step: int = Field(default=0, description="micro-batches done, as far as reported")
    steps: int = Field(default=0, description="micro-batches in all; 0 until the data is read")
    checkpoint_step: int = Field(default=0, description="step of the newest checkpoint")
    cancel_requested: bool = False
    request: str | None = Field(default=None, description="idempotency key of the submission")

    @classmethod
    def new(cls, job_id: str, name: str, *, priority: int = 0, request: str | None = None) -> Self:
        """The record of a job that has just been accepted."""
        now = utc_now()
        return cls(
            id=job_id,
            name=name,
            state=State.ACCEPTED,
            priority=priority,
            created=now,
            changed=now,
            request=request,
        )

    @property
    def is_final(self) -> bool:
        """The job has ended and will not change again."""
        return self.state in FINAL

    def moved(self, target: State, reason: str = "", **changes: Any) -> Self:
        """The record in another state. Raises `IllegalMove` where the table forbids it."""
        check_move(self.id, self.state, target)
        now = utc_now()
        if target in FINAL:
            changes.setdefault("ended", now)
        return self.model_copy(update={"state": target, "reason": reason, "changed": now, **changes})

    def noting(self, **changes: Any) -> Self:
        """The record in the same state with other facts (progress, counts)."""
        return self.model_copy(update=changes)

    def store(self, path: Path) -> None:
        """Write the record durably. The daemon alone calls this."""
        durable.write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record.

        Raises:
            OSError: there is none.
            ValueError: it is not a record of this format.
        """
        return cls.model_validate(json.loads(path.read_bytes()))
