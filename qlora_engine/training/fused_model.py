"""A fused model as one of the home's models: where it came from, and its place among them."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from qlora_engine import __version__
from qlora_engine.job import durable
from qlora_engine.job.folder import Home
from qlora_engine.job.model_store import adding, publish
from qlora_engine.job.models import PROVENANCE, describe
from qlora_engine.job.resolved import ResolvedFuse


def write_provenance(folder: Path, job: ResolvedFuse, job_id: str, base: Path) -> None:
    """Write down what a model was made from, as `qlora models ls` shows it.

    Args:
        job, job_id: that fuses.
        base: the base model's folder, whose licence goes on to the result.
    """
    about = {
        "source": f"{job.source} on {job.model}",
        "fused_by": job_id,
        "qlorad": __version__,
        "licence": describe(base).licence,
        "converted": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    durable.write_json(folder / PROVENANCE, about)


def add_to_models(model: Path, home: Home, name: str, job_id: str) -> Path:
    """Put a model among the home's models under a name. Its files are the same on the disk and take no room twice.

    So it stays when the run is cleaned away.

    Args:
        model: the result of a job, which is not changed any more.
        name: as admitted.
        job_id: of that job; what an earlier attempt of it has added is taken as it is.

    Returns:
        The model's place.

    Raises:
        ModelNotAdded: another model has the name by now, or another process adds one just now.
    """
    place = home.models / name
    if _maker_of(place) == job_id:
        return place
    with adding(home.path, name) as work:
        copy = work / name
        shutil.copytree(model, copy, copy_function=_link)
        return publish(copy, home.path, name)


def _maker_of(model: Path) -> str | None:
    try:
        maker = json.loads((model / PROVENANCE).read_bytes()).get("fused_by")
    except (OSError, ValueError, AttributeError):
        return None
    return maker if isinstance(maker, str) else None


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copy2(source, target)
