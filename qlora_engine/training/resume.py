"""The checkpoints of a run: going on from the newest, writing them, and the way back to an earlier one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qlora_engine.job.datafiles import Split
from qlora_engine.job.errors import CheckpointDamaged, TrainingFailed
from qlora_engine.job.events import EventLog
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.training import checkpoint
from qlora_engine.training.adapters import start_from
from qlora_engine.training.checkpoint_writer import CheckpointWriter, Wanted
from qlora_engine.training.earlier import Earlier, say_damaged
from qlora_engine.training.exactness import compare
from qlora_engine.training.fingerprint import fingerprint
from qlora_engine.training.ladder import Ladder
from qlora_engine.training.progress import Progress
from qlora_engine.training.runtime import Runtime
from qlora_engine.training.step import TrainingStep

# Why a checkpoint is written that training can go on without waiting for.
BESIDE = ("count", "best", "time")


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, and what a step must agree with to go on from one.

    Attributes:
        hashes: SHA-256 of the data files, as they are now.
        has_room: whether so many bytes may be held beside what training needs.
    """

    job: ResolvedJob
    run: RunFolder
    step: TrainingStep
    hashes: Mapping[Split, str]
    ladder: Ladder
    runtime: Runtime
    log: EventLog
    has_room: Callable[[int], bool]
    _writer: CheckpointWriter = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_writer", CheckpointWriter(self.job, self.run, self.log))

    def begin(self, earlier: Earlier | None) -> Progress:
        """Go on from a checkpoint that agrees with the job, or start."""
        if earlier is not None:
            self._say_resumed(earlier)
            return self._restore(earlier.checkpoint, earlier.trainer)
        if self.job.resume_adapter_file:
            start_from(Path(self.job.resume_adapter_file), self.step)
        return Progress()

    def save(self, progress: Progress, why: str) -> None:
        """Write a checkpoint and the adapters as they are now; drop old checkpoints.

        One that training does not depend on is written while training goes on, if there is room for a copy.

        Raises:
            OSError: it cannot be written, or the one before could not; the earlier ones stand.
        """
        trainer = {
            "progress": progress.as_json(),
            "fingerprint": fingerprint(self.job, self.hashes),
            "ladder": self.ladder.as_json(),
            **self.runtime.environment,
        }
        self.settle()  # two at once would be two copies too many
        snapshot = self.step.snapshot()
        room = self.has_room(snapshot.size)
        if room:
            snapshot.copy_if_moved()
        kept = {progress.best_step, *progress.anchors, *progress.anchor_bests}
        self._writer.begin(snapshot, Wanted(progress.step, why, trainer, kept))
        if not (room and why in BESIDE):
            self.settle()

    def poll(self) -> None:
        """Say that a checkpoint has been written beside training, if it has.

        Raises:
            OSError: it could not be.
        """
        self._writer.poll()

    def settle(self) -> None:
        """Wait for the checkpoint that is being written.

        Raises:
            OSError: it could not be.
        """
        self._writer.settle()

    def roll_back(self, tripped: Progress) -> Progress:
        """Go back to a checkpoint from which training was good, with a lower rate, and past the rows that did it.

        A kill at any point is harmless: from an earlier checkpoint the same rows are dropped again, and training
        goes back again in the same way.

        Raises:
            TrainingFailed: no checkpoint is left to go back to.
        """
        self.settle()
        target = tripped.guard.target_of(tripped.anchors)
        checkpoint.remove_after(self.run.checkpoints, target)
        found = checkpoint.newest(self.run.checkpoints, self._say_damaged)
        if found is None:
            raise TrainingFailed(
                "Training must go back to a checkpoint, but none is whole.",
                where=str(self.run.checkpoints),
                remedy="Submit the job again with a lower learning_rate, and check the disk.",
            )
        progress = self._restore(*found)
        guard = progress.guard.rolled_back(tripped.guard, found[0].step)
        self.step.rate_factor = guard.rate_factor
        self.log.emit(
            "guard.rolled_back",
            step=tripped.step,
            to_step=progress.step,
            skipped=[step + 1 for step in tripped.guard.dropped],
            rate_factor=guard.rate_factor,
            rollbacks=guard.rollbacks,
        )
        progress = replace(progress, guard=guard)
        self.save(progress, "rollback")
        return progress

    def take_best(self, progress: Progress) -> int | None:
        """Put the weights of the lowest validation loss into the step; its step, or None if they cannot be had."""
        if progress.best_step is None:
            return None
        self.settle()
        best = checkpoint.folder_of(self.run.checkpoints, progress.best_step)
        try:
            checkpoint.check(best)
        except CheckpointDamaged as error:
            self._say_damaged(best, error)
            return None
        self.step.restore(checkpoint.load_arrays(best))
        return progress.best_step

    def _restore(self, found: checkpoint.Checkpoint, trainer: Mapping[str, Any]) -> Progress:
        progress = Progress.of(trainer["progress"])
        self.step.restore(checkpoint.load_arrays(found.path))
        self.step.rate_factor = progress.guard.rate_factor
        return progress

    def _say_resumed(self, earlier: Earlier) -> None:
        since = compare(earlier.trainer, self.runtime.environment)
        self.log.emit(
            "training.resumed",
            step=earlier.checkpoint.step,
            path=str(earlier.checkpoint.path),
            exact=since.exact,
            changed=list(since.changed),
        )

    def _say_damaged(self, path: Path, error: CheckpointDamaged) -> None:
        say_damaged(self.log, path, error)
