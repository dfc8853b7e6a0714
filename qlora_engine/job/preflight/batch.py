"""The widest micro-batch of a job, and how it is laid out: what the memory of a step depends on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qlora_engine.job.spec import JobSpec

# Row widths are multiples of these. A GPU's computation is compiled for each shape, so there are few of them.
GRID = {"cpu": 8, "cuda": 32, "metal": 32}


def row_width(inputs: int, grid: int) -> int:
    """The width of a row of so many inputs: a multiple of the grid, and of a sixteenth of the power of two below it."""
    step = max(grid, 1 << max(0, inputs.bit_length() - 5))
    return max(1, -(-inputs // step)) * step


@dataclass(frozen=True)
class Batch:
    """A micro-batch in memory.

    Attributes:
        rows: computed at once.
        width: inputs a row, padding included.
        targets: positions that are learned, in all rows.
        recompute: share of the trained layers, the lowest of them, that keep their input alone.
    """

    rows: int
    width: int
    targets: int
    recompute: float

    @property
    def positions(self) -> int:
        """Inputs in all rows."""
        return self.rows * self.width

    @classmethod
    def widest(cls, spec: JobSpec, *, rows: int, longest: int, targets: int, backend: str) -> Batch:
        """The widest micro-batch that a job can meet.

        Args:
            rows: of the training data.
            longest: tokens of the longest of them, before it is cut.
            targets: most that one row has.
            backend: cpu, cuda or metal.
        """
        at_once = min(spec.batch_size, rows)
        inputs = max(1, min(longest, spec.max_seq_length) - 1)
        width = min(row_width(inputs, GRID[backend]), max(1, spec.max_seq_length - 1))
        return cls(at_once, width, at_once * min(targets, inputs), float(spec.grad_checkpoint))

    def of_rows(self, rows: int) -> Batch:
        """With fewer rows at once."""
        return replace(self, rows=rows, targets=max(1, self.targets * rows // self.rows))

    def cut(self, tokens: int) -> Batch:
        """With rows cut after `tokens`."""
        width = min(self.width, max(1, tokens - 1))
        return replace(self, width=width, targets=max(1, self.targets * width // self.width))

    def recomputed(self, recompute: float) -> Batch:
        """With another share of layers that are computed again."""
        return replace(self, recompute=recompute)
