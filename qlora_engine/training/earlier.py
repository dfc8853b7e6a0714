"""What earlier processes of a run have left to go on from, and whether it belongs to the job as it is now."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_engine.job.datafiles import Split
from qlora_engine.job.errors import CheckpointDamaged, ResumeRefused
from qlora_engine.job.events import EventLog
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.training import checkpoint
from qlora_engine.training.fingerprint import changes, fingerprint


@dataclass(frozen=True)
class Earlier:
    """The newest whole checkpoint of a run, before anything of it is loaded.

    Attributes:
        trainer: its state beside the arrays.
    """

    checkpoint: checkpoint.Checkpoint
    trainer: Mapping[str, Any]

    @classmethod
    def of(cls, run: RunFolder, log: EventLog) -> Earlier | None:
        """None where there is no whole one; each that is damaged is said."""
        checkpoint.tidy(run.checkpoints)
        found = checkpoint.newest(run.checkpoints, lambda path, error: say_damaged(log, path, error))
        return None if found is None else cls(*found)

    def has_model_of(self, job: ResolvedJob) -> bool:
        """Whether it was trained from the model that the job has now."""
        try:
            now = fingerprint(job, {})
        except OSError:  # a model that is not whole, which loading it says better
            return False
        then = self.trainer["fingerprint"]
        return all(then.get(key) == now.get(key) for key in ("model", "model files"))

    def agrees(self, job: ResolvedJob, hashes: Mapping[Split, str], run: RunFolder, log: EventLog) -> bool:
        """Whether the run goes on from it. If not, the job wants to start over, and it is gone.

        Args:
            hashes: SHA-256 of the data files, as they are now.

        Raises:
            ResumeRefused: it was made by another job or from other data, and the job does not say to start over.
        """
        changed = changes(self.trainer["fingerprint"], fingerprint(job, hashes))
        if not changed:
            return True
        if job.spec.on_change == "refuse":
            raise ResumeRefused(
                f"The checkpoint at step {self.checkpoint.step} was made with other settings or data: "
                f"{', '.join(changed)}.",
                where=str(self.checkpoint.path),
                remedy="Put them back to go on, set on_change: restart to start over, or submit the job anew.",
            )
        log.emit("training.restarted", changed=changed, step=self.checkpoint.step)
        shutil.rmtree(run.checkpoints)
        job.store(run.spec)
        return False


def say_damaged(log: EventLog, path: Path, error: CheckpointDamaged) -> None:
    """A checkpoint is passed over."""
    log.emit("checkpoint.damaged", path=str(path), what=error.what)
