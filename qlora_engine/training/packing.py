"""How the documents of a window are laid out in rows: one in each, or several joined."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qlora_engine.job.preflight.batch import Grid
from qlora_engine.training.batches import Window, split
from qlora_engine.training.data import Document
from qlora_engine.training.targets import Targets

Rows = tuple[tuple[int, ...], ...]
TRIED = 8  # numbers of rows, from the fewest on; more rows are more padding
# Of the cost of fewer rows, below which more of them are worth a shape of their own, where shapes are compiled. Most
# layouts are as good as one another; asking for a tenth would cost 2% where attention is costly, and save few shapes.
WORTH_A_SHAPE = 0.99


@dataclass(frozen=True)
class Packing:
    """What decides how rows are made.

    Attributes:
        joined: a row may hold several documents; otherwise each has one of its own.
        grid: the widths that rows may have.
        attention: width at which a row's attention, which grows with the square of it, takes as long as all else.
        longest: width of the longest document's row.
        widest: width that no row exceeds; more than the longest document's where attention keeps no scores.
    """

    joined: bool
    grid: Grid
    attention: float
    longest: int
    widest: int

    def width(self, inputs: int) -> int:
        """The width of a row of so many inputs."""
        width = self.grid.width(max(inputs, 1))
        return self.longest if inputs <= self.longest < width else width

    @property
    def worth_a_shape(self) -> float:
        """Of the cost of the fewest rows that hold all, below which another layout is worth it."""
        return 1.0 if self.grid.shares is None else WORTH_A_SHAPE

    def targets(self, documents: Sequence[Document], rows: Rows) -> Targets:
        """The inputs and targets of these rows."""
        made = [[documents[document] for document in row] for row in rows]
        width = self.width(max(sum(max(0, len(d) - 1) for d in row) for row in made))
        return Targets.joined(made, width, self.grid)

    def cost(self, rows: Rows, inputs: Mapping[int, int]) -> float:
        """What a batch takes to compute, in positions of a narrow row.

        Args:
            rows: documents of each row.
            inputs: of every document.
        """
        width = self.width(max(sum(inputs[document] for document in row) for row in rows))
        return len(rows) * width * (1 + width / self.attention)


@dataclass(frozen=True)
class Batch:
    """What is computed at once.

    Attributes:
        rows: documents of each row, joined in this order.
        step: micro-batches of the run before it, which names it.
        steps: micro-batches that it counts for; more than one where joining saved some.
    """

    rows: Rows
    step: int
    steps: int

    @property
    def documents(self) -> list[int]:
        """All of them."""
        return [document for row in self.rows for document in row]

    def parts(self, rows: int, batch_size: int) -> list[Rows]:
        """What is computed at once when only so many of `batch_size` rows may be: then no documents are joined."""
        if rows >= batch_size:
            return [self.rows]
        return [tuple((document,) for document in part) for part in split(self.documents, rows)]


def lay_out(window: Window, lengths: Sequence[int], packing: Packing, batch_size: int) -> list[Batch]:
    """The batches of a window: what is fastest of one document a row and several, or as good as that and usual.

    The gradient of a window is that of one batch of all its documents in every layout. No batch takes more
    memory than `batch_size` rows as wide as the longest document.

    Args:
        lengths: tokens of every document of the data.
    """
    alone = [tuple((document,) for document in documents) for documents in window.micro_batches]
    if not packing.joined:
        return _counted(alone, len(alone), window.step)
    documents = [document for documents in window.micro_batches for document in documents]
    inputs = {document: max(1, lengths[document] - 1) for document in documents}
    joined = _join(documents, inputs, packing, len(alone), batch_size * packing.longest)
    if joined is not None and packing.worth_a_shape * _cost(joined, inputs, packing) < _cost(alone, inputs, packing):
        return _counted(joined, len(alone), window.step)
    return _counted(alone, len(alone), window.step)


def _counted(batches: Sequence[Rows], steps: int, step: int) -> list[Batch]:
    """Deal the window's micro-batches out to its batches, of which there are no more."""
    ends = [(index + 1) * steps // len(batches) for index in range(len(batches))]
    starts = [0, *ends[:-1]]
    return [Batch(rows, step + start, end - start) for rows, start, end in zip(batches, starts, ends, strict=True)]


def _cost(batches: Sequence[Rows], inputs: Mapping[int, int], packing: Packing) -> float:
    return sum(packing.cost(rows, inputs) for rows in batches)


def _join(
    documents: Sequence[int], inputs: Mapping[int, int], packing: Packing, most: int, positions: int
) -> list[Rows] | None:
    """The fewest batches that hold the documents, each of at most so many positions; None where `most` are too few."""
    fewest = math.ceil(sum(inputs[document] for document in documents) / positions)
    for count in range(fewest, most + 1):
        batches = [_rows(group, inputs, packing, positions) for group in deal(documents, inputs, count)]
        if all(batches):
            return [rows for rows in batches if rows]
    return None


def _rows(documents: Sequence[int], inputs: Mapping[int, int], packing: Packing, positions: int) -> Rows | None:
    """Documents joined in as many rows as is fastest, of like ones the fewest; None where they do not fit."""
    fewest = math.ceil(sum(inputs[document] for document in documents) / packing.widest)
    best: Rows | None = None
    for count in range(fewest, min(len(documents), fewest + TRIED) + 1):
        rows = deal(documents, inputs, count)
        widest = max(sum(inputs[document] for document in row) for row in rows)
        if widest > packing.widest or count * packing.width(widest) > positions:
            continue
        if best is None or packing.cost(rows, inputs) < packing.worth_a_shape * packing.cost(best, inputs):
            best = rows
    return best


def deal(documents: Sequence[int], inputs: Mapping[int, int], groups: int) -> Rows:
    """Documents in groups of like size: the longest first, each to the group that holds least (Graham 1969)."""
    loads = [(0, group) for group in range(groups)]
    dealt: list[list[int]] = [[] for _ in loads]
    for document in sorted(documents, key=lambda document: (-inputs[document], document)):
        load, group = heapq.heappop(loads)
        dealt[group].append(document)
        heapq.heappush(loads, (load + inputs[document], group))
    return tuple(tuple(group) for group in dealt if group)
