"""How often MLX's allocator must ask the driver for memory while batches of many widths are trained: a model of it.

    python benchmarks/reuse.py --reserve-gb 35.6 --left-gb 30

MLX keeps freed buffers up to a limit, and reuses one of nearly the size that is asked for. Batches of another width ask
for other sizes, so that the reserve must have room for all widths that are usual. What is left in it from set-up,
buffers as large as weights, is asked for by none. This follows the cache's rules (mlx/backend/common/buffer_cache.h)
through the layouts of the rows of `engine.py --mixed`, for a 7B shape; no GPU is needed, and nothing is trained.
"""

from __future__ import annotations

import argparse
import bisect
import json
import random
from collections import OrderedDict
from collections.abc import Iterator

from qlora_engine.job.preflight.batch import GRID
from qlora_engine.training.batches import Plan
from qlora_engine.training.packing import Packing, lay_out
from qlora_engine.training.packing_choice import widest_row

PAGE = 16384
WEIGHT = 14336 * 4096 * 2  # bytes of what is left from set-up, each
LAYERS = 32
# Numbers for each position, 16 bits: what a layer keeps, forward, and what comes and goes, forward and backward.
KEPT = (4096, 6144, 4096, 1024, 4096, 4096, 48, 4096, 28672, 32, 16)
PASSING, PASSING_BACK = (14336, 4096), (4096, 14336, 14336, 28672, 4096, 4096, 6144, 4096)


class Reserve:
    """MLX's cache of freed buffers, of which the least recently freed go first.

    Args:
        most: bytes.
    """

    def __init__(self, most: float) -> None:
        self.most, self.held, self.missed, self.missed_bytes = most, 0, 0, 0
        self._freed: OrderedDict[int, int] = OrderedDict()
        self._of_size: dict[int, list[int]] = {}
        self._sizes: list[int] = []
        self._count = 0

    def take(self, size: int) -> int:
        """A buffer for that many bytes; its size."""
        at = bisect.bisect_left(self._sizes, size)
        found = self._sizes[at] if at < len(self._sizes) else None
        if found is not None and found < min(2 * size, size + 2 * PAGE):
            self._remove(self._of_size[found][-1])
        else:
            found = size
            self.missed += 1
            self.missed_bytes += size
        while self._freed and self.held > self.most:
            self._remove(next(iter(self._freed)))
        return found

    def free(self, size: int) -> None:
        """Keep a buffer, or give it back to the driver where there is no room."""
        if self.held >= self.most:
            return
        self._count += 1
        self._freed[self._count] = size
        self.held += size
        if size not in self._of_size:
            bisect.insort(self._sizes, size)
        self._of_size.setdefault(size, []).append(self._count)

    def _remove(self, buffer: int) -> None:
        size = self._freed.pop(buffer)
        self.held -= size
        self._of_size[size].remove(buffer)
        if not self._of_size[size]:
            del self._of_size[size]
            self._sizes.remove(size)


def train_on(reserve: Reserve, positions: int) -> None:
    """Take and free what a step of so many positions does."""

    def size(width: int) -> int:
        return -(-positions * width * 2 // PAGE) * PAGE

    kept = []
    for _ in range(LAYERS):
        kept.append([reserve.take(size(width)) for width in KEPT])
        for width in PASSING:
            reserve.free(reserve.take(size(width)))
    for layer in reversed(kept):
        for buffer in [reserve.take(size(width)) for width in PASSING_BACK]:
            reserve.free(buffer)
        for buffer in reversed(layer):
            reserve.free(buffer)


def batches() -> Iterator[int]:
    """Positions of each batch of a run, four documents in each."""
    draw = random.Random(0)  # noqa: S311  # the same rows every time
    lengths = [min(max(round(draw.lognormvariate(5.0, 0.6)), 24), 512) + 1 for _ in range(1600)]
    plan, grid = Plan(lengths, 4, 1, 0, 900), GRID["cuda"]
    packing = Packing(True, grid, 1e9, grid.least(plan.widest), widest_row(plan, "cuda"))
    for window in plan.windows(epoch=0, index=0, step=0):
        for batch in lay_out(window, plan.lengths, packing, plan.batch_size):
            widest = max(sum(max(0, lengths[document] - 1) for document in row) for row in batch.rows)
            yield len(batch.rows) * packing.width(widest)


def main(reserve_gb: float, left_gb: float) -> None:
    """Misses a step, in three parts of the run."""
    reserve = Reserve(reserve_gb * 1e9)
    for _ in range(round(min(left_gb, reserve_gb) * 1e9 / WEIGHT)):
        reserve.free(WEIGHT)
    counted = []
    for positions in batches():
        before = reserve.missed, reserve.missed_bytes
        train_on(reserve, positions)
        counted.append((reserve.missed - before[0], reserve.missed_bytes - before[1]))
    for start, stop in ((50, 150), (150, 400), (400, 900)):
        part = counted[start:stop]
        misses, missed = (sum(step[n] for step in part) / len(part) for n in range(2))
        print(json.dumps({
            "reserve_gb": reserve_gb, "left_gb": left_gb, "steps": [start, stop],
            "misses_a_step": round(misses, 1), "gb_a_step": round(missed / 1e9, 2),
        }))  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reserve-gb", type=float, required=True, help="10^9 bytes that MLX may keep")
    parser.add_argument("--left-gb", type=float, default=0.0, help="of them, what set-up left")
    arguments = parser.parse_args()
    main(arguments.reserve_gb, arguments.left_gb)
