"""Writing checkpoints and the adapters of the moment, beside training where that need not wait for them."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from qlora_engine.job.events import EventLog
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.training import checkpoint, tensor_file
from qlora_engine.training.adapters import save_adapters
from qlora_engine.training.aside import Aside
from qlora_engine.training.snapshot import Snapshot
from qlora_engine.training.step import MASTERS


@dataclass(frozen=True)
class Wanted:
    """What a checkpoint says beside its arrays.

    Attributes:
        step: micro-batches done.
        why: it is written.
        trainer: position, counters and hashes, as JSON.
        kept: steps whose checkpoints stay, however old.
    """

    step: int
    why: str
    trainer: Mapping[str, Any]
    kept: Collection[int | None]


class CheckpointWriter:
    """Writes one at a time, in a thread that does not touch MLX.

    What the GPU has copied is looked at when `poll` or `settle` is called next: after a window that was begun behind
    it has been waited for, it is there, and training has not waited. Anything else is copied at once: held, it would
    add to the peak of the next window.
    """

    def __init__(self, job: ResolvedJob, run: RunFolder, log: EventLog) -> None:
        self._job, self._run, self._log = job, run, log
        self._next: tuple[Snapshot, Wanted] | None = None
        self._held: Snapshot | None = None  # while its arrays are read: MLX frees them in the thread that made them
        self._aside: Aside[dict[str, Any]] = Aside(self._written)

    def begin(self, snapshot: Snapshot, wanted: Wanted) -> None:
        """Write this one; the one before must be settled."""
        self._next = (snapshot, wanted)
        if not snapshot.copied:
            self._hand_over()

    def poll(self) -> None:
        """Go on with what was begun, and say that it has been written, if it has.

        Raises:
            OSError: it could not be.
        """
        self._hand_over()
        self._aside.poll()

    def settle(self) -> None:
        """Wait until what was begun has been written.

        Raises:
            OSError: it could not be.
        """
        self._hand_over()
        self._aside.wait()

    def _hand_over(self) -> None:
        if self._next is not None:
            (snapshot, wanted), self._next = self._next, None
            arrays = snapshot.on_host()
            self._held = snapshot
            self._aside.begin(lambda: self._write(arrays, wanted))

    def _written(self, saved: dict[str, Any]) -> None:
        self._held = None
        self._log.emit("checkpoint.saved", **saved)

    def _write(self, arrays: tensor_file.Arrays, wanted: Wanted) -> dict[str, Any]:
        started = time.perf_counter()
        saved = checkpoint.save(self._run.checkpoints, wanted.step, arrays, wanted.trainer)
        masters = {name.removeprefix(MASTERS): array for name, array in arrays.items() if name.startswith(MASTERS)}
        save_adapters(self._run.adapters, masters, self._job)
        checkpoint.prune(self._run.checkpoints, wanted.kept)
        return {
            "step": saved.step,
            "path": str(saved.path),
            "why": wanted.why,
            "bytes": sum(file.stat().st_size for file in saved.path.iterdir()),
            "seconds": round(time.perf_counter() - started, 3),
        }
