"""Which micro-batches of a very long run are written to its metrics, so that the file stays one that can be read."""

from __future__ import annotations

WHOLE = 100_000  # micro-batches that are all written: some 41 MB


def is_written(before: int, step: int) -> bool:
    """Whether a micro-batch is written: each of the first 100,000, then each tenth up to ten times as many, and so on.

    It depends on the step alone, so that a run which stops and goes on writes the same. A million micro-batches take
    some 78 MB, ten million some 115 MB.

    Args:
        before: micro-batches done before it.
        step: micro-batches done with it.
    """
    stride = 1
    while step > WHOLE * stride:
        stride *= 10
    return step // stride > before // stride
