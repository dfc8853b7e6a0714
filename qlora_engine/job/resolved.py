"""A job as it will run: the spec with every default written out, paths absolute, data hashed. `spec.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from qlora_engine.job import durable, stored
from qlora_engine.job.datafiles import DataFile, Split
from qlora_engine.job.formats import SPEC
from qlora_engine.job.fuse_spec import FuseSpec
from qlora_engine.job.record import Kind
from qlora_engine.job.spec import JobSpec


class _Resolved(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(default=SPEC.current, ge=SPEC.current, le=SPEC.current)
    model_path: str | None = None  # a folder on this machine; None for a hub name that is not cached yet

    def store(self, path: Path) -> None:
        """Write it durably."""
        durable.write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it back.

        Raises:
            NewerFormat: a newer qlorad has written it.
            OSError, ValueError: it is missing or damaged.
        """
        return stored.parse(cls, path.read_bytes(), SPEC, path)[0]

    @classmethod
    def needed(cls, path: Path) -> Self:
        """`load`, for a process that can do nothing without it.

        Raises:
            NewerFormat: as above.
            RunDamaged: it is missing or damaged.
            OSError: it cannot be read.
        """
        with stored.needed(path, "Submit the job again: the file that was submitted lies beside it."):
            return cls.load(path)


class ResolvedJob(_Resolved):
    """What training needs to know. Two equal resolved jobs train equal adapters."""

    spec: JobSpec
    data: dict[Split, DataFile] = {}  # empty for a data set of the hub
    resume_adapter_file: str | None = None


class ResolvedFuse(_Resolved):
    """What fusing needs to know.

    Attributes:
        source: the id of the job whose adapters are fused.
        model: the base, as that job names it.
    """

    kind: Literal["fuse"] = "fuse"
    spec: FuseSpec
    source: str
    model: str


AnySpec = JobSpec | FuseSpec
AnyResolved = ResolvedJob | ResolvedFuse


def kind_of(job: AnyResolved) -> Kind:
    """What the job does."""
    return "fuse" if isinstance(job, ResolvedFuse) else "train"


def load_resolved(path: Path) -> AnyResolved:
    """Read a job of either kind. Raises as `load` does."""
    value = json.loads(path.read_bytes())
    fuses = isinstance(value, dict) and value.get("kind") == "fuse"
    return (ResolvedFuse if fuses else ResolvedJob).load(path)
