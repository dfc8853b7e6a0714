"""A job as it will run: the spec with every default written out, paths absolute, data hashed. `spec.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from qlora_engine.job import durable, stored
from qlora_engine.job.datafiles import DataFile, Split
from qlora_engine.job.formats import SPEC
from qlora_engine.job.spec import JobSpec


class ResolvedJob(BaseModel):
    """What training needs to know. Two equal resolved jobs train equal adapters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(default=SPEC.current, ge=SPEC.current, le=SPEC.current)
    spec: JobSpec
    model_path: str | None = None  # a folder on this machine; None for a hub name that is not cached yet
    data: dict[Split, DataFile] = {}  # empty for a data set of the hub
    resume_adapter_file: str | None = None

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
