"""A job as it will run: the spec with every default written out, paths absolute, data hashed. `spec.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from qlora_engine.job import durable
from qlora_engine.job.datafiles import DataFile, Split
from qlora_engine.job.spec import JobSpec

FORMAT = 1


class ResolvedJob(BaseModel):
    """What training needs to know. Two equal resolved jobs train equal adapters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
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
            OSError, ValueError: it is missing or is not of this format.
        """
        return cls.model_validate(json.loads(path.read_bytes()))
