"""The widest micro-batch of a job, and how it is laid out: what the memory of a step depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from qlora_engine.job.spec import JobSpec

WIDTH_STEP = 32  # inputs of a row are padded to a multiple of this, as in qlora_engine.training.batches


@dataclass(frozen=True)
class Batch:
    """A micro-batch in memory.

    Attributes:
        rows: computed at once.
        width: inputs a row, padding included.
        targets: positions that are learned, in all rows.
        recompute: layers keep their input alone.
    """

    rows: int
    width: int
    targets: int
    recompute: bool

    @property
    def positions(self) -> int:
        """Inputs in all rows."""
        return self.rows * self.width

    @classmethod
    def widest(cls, spec: JobSpec, *, rows: int, longest: int, targets: int) -> Batch:
        """The widest micro-batch that a job can meet.

        Args:
            rows: of the training data.
            longest: tokens of the longest of them, before it is cut.
            targets: most that one row has.
        """
        at_once = min(spec.batch_size, rows)
        inputs = max(1, min(longest, spec.max_seq_length) - 1)
        width = min(WIDTH_STEP * math.ceil(inputs / WIDTH_STEP), max(1, spec.max_seq_length - 1))
        return cls(at_once, width, at_once * min(targets, inputs), spec.grad_checkpoint)

    def of_rows(self, rows: int) -> Batch:
        """With fewer rows at once."""
        return replace(self, rows=rows, targets=max(1, self.targets * rows // self.rows))

    def cut(self, tokens: int) -> Batch:
        """With rows cut after `tokens`."""
        width = min(self.width, max(1, tokens - 1))
        return replace(self, width=width, targets=max(1, self.targets * width // self.width))

    def recomputed(self, recompute: bool) -> Batch:
        """With or without recomputation."""
        return replace(self, recompute=recompute)
