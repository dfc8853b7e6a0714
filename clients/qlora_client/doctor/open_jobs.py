"""What the jobs that have not ended will need of disks and folders: their data, their models, room for checkpoints."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qlora_client.listing import overview
from qlora_engine.job.folder import Home
from qlora_engine.job.preflight.memory import OPTIMIZER_STATE, trained_layers, trained_parameters
from qlora_engine.job.preflight.shape import ModelShape, ShapeUnknown
from qlora_engine.job.resolved import ResolvedFuse, ResolvedJob, load_resolved
from qlora_engine.job.states import FINAL

NEWEST = 1000  # jobs that are looked through: ten thousand would take seconds, and old ones have ended
MOST = 100  # of them whose needs are read
FLOAT = 4  # bytes: adapters and optimizer are saved in float32
# The three newest checkpoints, that of the lowest loss, one that is being written, and the adapters themselves.
COPIES = 6


@dataclass(frozen=True)
class Need:
    """What one job needs.

    Attributes:
        job: its id.
        files: data and model, of which each must be readable.
        room: bytes that its checkpoints take; 0 where the model's shape is not known.
    """

    job: str
    files: tuple[Path, ...]
    room: int


def needs(home: Home) -> list[Need]:
    """What each job needs that has not ended; jobs that cannot be read are left out, `qlora ls` shows those."""
    return [need for job in _open_ids(home) if (need := _need(home, job)) is not None]


def _open_ids(home: Home) -> Iterator[str]:
    found = (job.id for job in overview(home, NEWEST).jobs if job.state not in FINAL)
    for _, job in zip(range(MOST), found, strict=False):
        yield job


def _need(home: Home, job: str) -> Need | None:
    try:
        resolved = load_resolved(home.run(job).spec)
    except (OSError, ValueError):
        return None
    if isinstance(resolved, ResolvedFuse):
        return Need(job, (Path(resolved.model_path),) if resolved.model_path else (), 0)
    files = [Path(file.path) for file in resolved.data.values()]
    if resolved.model_path:
        files.append(Path(resolved.model_path))
    return Need(job, tuple(files), _room(resolved))


def _room(job: ResolvedJob) -> int:
    with contextlib.suppress(OSError, ValueError, ShapeUnknown):
        shape = ModelShape.of(json.loads((Path(job.model_path or "") / "config.json").read_bytes()))
        trained = trained_layers(job.spec, shape) * trained_parameters(job.spec, shape)
        states = 1 + OPTIMIZER_STATE.get(job.spec.optimizer, 2.0)
        return int(COPIES * FLOAT * states * trained)
    return 0
