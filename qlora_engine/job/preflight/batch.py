"""The widest micro-batch of a job, and how it is laid out: what the memory of a step depends on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qlora_engine.job.spec import JobSpec

LEAST_TARGETS = 32
# Positions that the feed-forward part of a recomputed layer computes at once, where there are over twice as many.
CHUNK = 4096
# Of an output layer, dequantized at once where layers are recomputed: memory is short there.
BLOCK_BYTES = 450 << 20


@dataclass(frozen=True)
class Grid:
    """The shapes that micro-batches may have: few, since a GPU's computation is compiled for each.

    Attributes:
        step: widths are multiples of it, and of a sixteenth of the power of two below them.
        wide: widths beyond it are multiples of `coarse`.
        shares: how many numbers of targets there are for a number of positions. None: what nothing is compiled for
            may be as near to the number that there is as an eighth.
    """

    step: int
    wide: int = 1 << 62
    coarse: int = 1
    shares: int | None = None

    def width(self, inputs: int) -> int:
        """The width of a row of so many inputs."""
        least = self.coarse if inputs > self.wide else self.step
        step = max(least, 1 << max(0, inputs.bit_length() - 5))
        return max(1, -(-inputs // step)) * step

    def least(self, inputs: int) -> int:
        """The least width of a row of so many inputs, for the longest row of all: it is one shape in any case."""
        step = self.coarse if inputs > self.wide else self.step
        return max(1, -(-inputs // step)) * step

    def targets(self, count: int, positions: int) -> int:
        """How many targets are computed where there are `count`, 0 or more."""
        if self.shares is None:
            step = max(LEAST_TARGETS, 1 << max(0, count.bit_length() - 4))
            return max(1, -(-count // step)) * step
        share = -(-positions // self.shares)
        return max(1, -(-count // share)) * share


# On CUDA the gradient of attention has a kernel for multiples of 128 alone; for others it keeps all scores.
GRID = {"cpu": Grid(8), "cuda": Grid(32, wide=256, coarse=128, shares=4), "metal": Grid(32, shares=4)}


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
        width = GRID[backend].least(inputs)
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
