"""The adapters of the checkpoint with the lowest validation loss, taken out of it."""

from __future__ import annotations

from pathlib import Path

from qlora_engine.job.errors import CheckpointDamaged, WrongState
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.training import checkpoint
from qlora_engine.training.adapters import save_adapters
from qlora_engine.training.progress import Progress
from qlora_engine.training.tensor_file import on_host

MASTERS = "masters."  # what a checkpoint calls the trained parameters


def save_best(run: RunFolder, job: ResolvedJob, into: Path, *, otherwise: str) -> str:
    """Write the adapters of the lowest validation loss so far into the folder `into`.

    Args:
        otherwise: what to do where there are none, for the error.

    Returns:
        The name of their checkpoint.

    Raises:
        WrongState: there is no such checkpoint, or it is damaged.
    """
    found = checkpoint.newest(run.checkpoints, lambda _path, _error: None)
    step = Progress.of(found[1]["progress"]).best_step if found else None
    if step is None:
        raise WrongState(
            "The run has no checkpoint that a validation loss is known of.",
            where=str(run.checkpoints),
            remedy=otherwise,
        )
    best = checkpoint.folder_of(run.checkpoints, step)
    try:
        checkpoint.check(best)
    except CheckpointDamaged as error:
        raise WrongState(
            f"The checkpoint of the lowest validation loss cannot be used: {error.what}",
            where=str(best),
            remedy=otherwise,
        ) from error
    arrays = on_host(checkpoint.load_arrays(best))
    masters = {name.removeprefix(MASTERS): array for name, array in arrays.items() if name.startswith(MASTERS)}
    save_adapters(into, masters, job)
    return best.name
