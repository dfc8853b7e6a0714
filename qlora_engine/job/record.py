"""What is known of a job: its state, attempts, times and reason. Stored as `state.json`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from qlora_engine.job import durable, stored
from qlora_engine.job.formats import RECORD
from qlora_engine.job.states import FINAL, State, check_move

Kind = Literal["train", "fuse"]  # what a job does


def utc_now() -> datetime:
    """The time in UTC, to the millisecond."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


class JobRecord(BaseModel):
    """A job's record. Immutable: `moved` and `noting` return a new one; only the daemon stores it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(default=RECORD.current, ge=RECORD.current, le=RECORD.current)
    id: str
    name: str
    kind: Kind = Field(default="train", description="it trains, or it fuses what another job has learned")
    state: State
    reason: str = Field(default="", description="why the job is in this state, for a person")
    priority: int = 0
    urgent: bool = Field(default=False, description="goes before all others; the running job stops for it")
    power: Literal["any", "ac"] | None = Field(default=None, description="on battery; None leaves it to the setting")
    after: tuple[str, ...] = Field(default=(), description="ids of jobs that must be done first")
    not_before: datetime | None = None
    retries: int = Field(default=0, description="how often it may be tried again")
    retried: int = Field(default=0, description="how often it was, since a person last let it go on")
    rests_until: datetime | None = Field(default=None, description="before it is tried again")
    max_runtime: float | None = Field(default=None, description="seconds of training after which it is held")
    ran: float = Field(default=0.0, description="seconds of training since a person last let it go on")
    running_since: datetime | None = Field(default=None, description="the training process of this attempt")
    after_stop: State = Field(default=State.QUEUED, description="where it goes when it has stopped")
    stop_reason: str = Field(default="", description="why it is being stopped, if not since the service stops")
    asked: tuple[str, ...] = Field(default=(), description="keys of the last requests that concerned it")
    attempt: int = Field(default=0, description="how often it was given to the worker")
    crashes: int = Field(default=0, description="crashes in a row without a new checkpoint")
    stalls: dict[str, int] = Field(default={}, description="by phase, stalls in a row without a new checkpoint")
    reboots: int = Field(default=0, description="how often the machine went down while it ran")
    boot: str | None = Field(default=None, description="the start of the machine in which the attempt began")
    created: datetime
    changed: datetime
    started: datetime | None = Field(default=None, description="first training process")
    ended: datetime | None = None
    step: int = Field(default=0, description="micro-batches done, as far as reported")
    steps: int = Field(default=0, description="micro-batches in all; 0 until the data is read")
    checkpoint_step: int = Field(default=0, description="step of the newest checkpoint")
    cancel_requested: bool = False
    request: str | None = Field(default=None, description="idempotency key of the submission")
    content: str | None = Field(default=None, description="digest of the job file and its data, to know it again by")
    group: str | None = Field(default=None, description="id of the sweep that it is a part of")
    settings: dict[str, Any] = Field(default={}, description="what it has of its own in its sweep, by dotted key")
    stop_worse_than: float | None = Field(
        default=None, description="it is ended when its validation loss is by this share above that of another"
    )
    outdone_by: str | None = Field(default=None, description="the job of its sweep that it was ended for")

    @classmethod
    def new(
        cls,
        job_id: str,
        name: str,
        *,
        kind: Kind = "train",
        priority: int = 0,
        request: str | None = None,
        content: str | None = None,
    ) -> Self:
        """The record of a job that has just been accepted."""
        now = utc_now()
        return cls(
            id=job_id,
            name=name,
            kind=kind,
            state=State.ACCEPTED,
            priority=priority,
            created=now,
            changed=now,
            request=request,
            content=content,
        )

    @property
    def submitted_as(self) -> str:
        """The id that its submission was answered with: its own, or its sweep's."""
        return self.group or self.id

    @property
    def is_final(self) -> bool:
        """The job has ended and will not change again."""
        return self.state in FINAL

    @property
    def goes_on(self) -> str:
        """How it goes on after it was stopped, for a person."""
        return "it goes on from its checkpoint" if self.kind == "train" else "it is done again from the start"

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
            NewerFormat: a newer qlorad has written it.
            ValueError: it is no record.
        """
        return cls.load_with_format(path)[0]

    @classmethod
    def load_with_format(cls, path: Path) -> tuple[Self, int]:
        """`load`, and the format that the file has, which may be older than the record's. Raises as `load` does."""
        return stored.parse(cls, path.read_bytes(), RECORD, path)


def is_one_sweep(part: str, found: Sequence[JobRecord]) -> bool:
    """Whether the jobs whose ids contain this text are those of one sweep, which it names."""
    groups = {record.group for record in found}
    group = next(iter(groups), None)
    return len(groups) == 1 and group is not None and part.lower() in group
