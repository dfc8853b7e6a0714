"""Which rows a step trains on: order, windows and padded micro-batches, all functions of seed and position."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from qlora_engine.training.data import Document
from qlora_engine.training.documents import lengths_of


@dataclass(frozen=True)
class Window:
    """The rows of one optimizer step.

    Attributes:
        epoch: pass over the data, from 0.
        index: window of that epoch, from 0.
        step: micro-batches of the run before it.
        micro_batches: row numbers of each micro-batch.
    """

    epoch: int
    index: int
    step: int
    micro_batches: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Plan:
    """The order in which a run sees its rows.

    A micro-batch holds `batch_size` rows and counts as one iteration, as in mlx_lm; a window holds
    `accumulation` of them. Every row is seen once an epoch: the last window of an epoch may be smaller, and it
    is applied with the weight that it has.

    Attributes:
        lengths: tokens of every row.
        steps: micro-batches of the whole run.
    """

    lengths: Sequence[int]
    batch_size: int
    accumulation: int
    seed: int
    steps: int

    @classmethod
    def of(
        cls,
        documents: Sequence[Document],
        *,
        batch_size: int,
        accumulation: int,
        seed: int,
        iters: int,
        epochs: float | None,
    ) -> Plan:
        """The plan for a job's data; `epochs`, where given, replaces `iters`."""
        per_epoch = math.ceil(len(documents) / batch_size)
        # Rounded first: 1.1 × 10 is a little over 11 in binary, and would be 12 micro-batches.
        steps = iters if epochs is None else max(1, math.ceil(round(epochs * per_epoch, 6)))
        return cls(lengths_of(documents), batch_size, accumulation, seed, steps)

    @cached_property
    def widest(self) -> int:
        """Inputs of the longest document: its last token is none."""
        return max(1, max(self.lengths) - 1)

    @property
    def steps_per_epoch(self) -> int:
        """Micro-batches of one epoch."""
        return math.ceil(len(self.lengths) / self.batch_size)

    @property
    def windows_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return math.ceil(len(self.lengths) / (self.batch_size * self.accumulation))

    @property
    def updates(self) -> int:
        """Optimizer steps of the whole run."""
        epochs, rest = divmod(self.steps, self.steps_per_epoch)
        return epochs * self.windows_per_epoch + math.ceil(rest / self.accumulation)

    def window(self, epoch: int, index: int, *, steps_left: int) -> Window:
        """One window, laid out in at most `steps_left` micro-batches.

        Rows of a window are sorted by length before they are dealt to micro-batches: the gradient of the window
        is the same in every layout, and rows of like length waste the least padding.
        """
        size = self.batch_size * self.accumulation
        rows = epoch_order(len(self.lengths), self.seed, epoch)[index * size : (index + 1) * size]
        rows = rows[: steps_left * self.batch_size]
        ordered = sorted((int(row) for row in rows), key=lambda row: (self.lengths[row], row))
        return Window(epoch, index, self.steps - steps_left, tuple(split(ordered, self.batch_size)))

    def windows(self, *, epoch: int, index: int, step: int) -> Iterator[Window]:
        """Every window from a position on, until `steps` micro-batches are done."""
        while step < self.steps:
            if index == self.windows_per_epoch:
                epoch, index = epoch + 1, 0
            window = self.window(epoch, index, steps_left=self.steps - step)
            yield window
            step += len(window.micro_batches)
            index += 1


@lru_cache(maxsize=2)  # asked for at every window
def epoch_order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch's rows, int64 (rows,).

    Sorting by the raw output of a counter-based generator (Philox; Salmon et al. 2011) depends on nothing that
    NumPy may change between versions, as its `permutation` may.
    """
    keys = np.random.Philox(key=[seed, epoch]).random_raw(rows)
    order = np.argsort(keys, kind="stable")
    order.flags.writeable = False
    return order


def evaluation_batches(lengths: Sequence[int], at_once: int, count: int, seed: int) -> list[tuple[int, ...]]:
    """The rows of a validation, `at_once` in each: all of them for -1, else the same drawn `count` every time."""
    rows = range(len(lengths))
    chosen = list(rows) if count < 0 else epoch_order(len(lengths), seed, 2**63)[:count].tolist()
    return list(split(sorted(chosen, key=lambda row: (lengths[row], row)), at_once))


def split(rows: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    """`rows` in runs of `size`; the last may be shorter."""
    for start in range(0, len(rows), size):
        yield tuple(rows[start : start + size])
