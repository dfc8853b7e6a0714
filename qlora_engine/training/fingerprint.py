"""What a checkpoint must agree with: the settings that shape training, the model and the data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_engine.job.datafiles import Split
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.spec import JobSpec

# Keys that may differ between a checkpoint and the job that resumes it: they change nothing that is trained.
FREE_KEYS = frozenset(
    {
        "name",
        "priority",
        "urgent",
        "hold",
        "power",
        "after",
        "not_before",
        "retries",
        "max_runtime",
        "notify",
        "project_name",
        "adapter_path",
        "config",
        "steps_per_report",
        "checkpoint_minutes",
        "clear_cache_threshold",
        "grad_checkpoint",
        "keep",
        "memory",
        "on_change",
        "on_out_of_memory",
        "report_to",
        "samples",
        "test",
        "test_batches",
    }
)
DEFAULTS = JobSpec().model_dump(mode="json")


def fingerprint(job: ResolvedJob, hashes: Mapping[Split, str]) -> dict[str, Any]:
    """A value for each thing that must be the same, by name.

    Args:
        job: as it is now.
        hashes: SHA-256 of its data files.
    """
    spec = {key: value for key, value in job.spec.model_dump(mode="json").items() if key not in FREE_KEYS}
    data = {f"data.{part}": sha256 for part, sha256 in hashes.items() if part != "test"}
    model = {"model files": identity(Path(job.model_path))} if job.model_path else {}
    return spec | data | model


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys in which two fingerprints differ. A key that an older version did not know had its default."""

    def at(side: Mapping[str, Any], key: str) -> Any:
        default = DEFAULTS.get(key)
        value = side.get(key, default)
        return default | value if isinstance(default, dict) and isinstance(value, dict) else value

    return sorted(key for key in then.keys() | now.keys() if at(then, key) != at(now, key))


def identity(model: Path) -> str:
    """SHA-256 over a model's config and, of each file of weights, its size and its table of arrays.

    The weights themselves are not read: of a model of 40 GB that would take longer than loading it.
    """
    digest = hashlib.sha256((model / "config.json").read_bytes())
    for file in sorted(model.glob("model*.safetensors")):
        with file.open("rb") as weights:
            length = int.from_bytes(weights.read(8), "little")
            digest.update(f"{file.name} {file.stat().st_size} ".encode() + weights.read(min(length, 1 << 26)))
    return digest.hexdigest()
