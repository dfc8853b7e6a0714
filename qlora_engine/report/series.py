"""Long series of numbers made short enough to be drawn, without hiding what stands out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qlora_engine.report.read import Column

POINTS = 500  # of a line in a plot


@dataclass(frozen=True)
class Series:
    """Values over steps; long ones in buckets of neighbouring steps. Without NaN.

    Attributes:
        step: float64 (N,), the middle of each bucket.
        low, mean, high: float64 (N,), of the values in it; equal where a bucket holds one.
    """

    step: Column
    low: Column
    mean: Column
    high: Column

    def __len__(self) -> int:
        return len(self.step)

    @property
    def bucketed(self) -> bool:
        """A point stands for several steps."""
        return bool(len(self)) and not np.array_equal(self.low, self.high)


def shorten(step: Column, value: Column, points: int = POINTS) -> Series:
    """At most so many points; values that are not finite are left out."""
    finite = np.isfinite(value)
    step, value = step[finite], value[finite]
    if len(step) <= points:
        return Series(step, value, value, value)
    edges = np.linspace(0, len(step), points + 1).astype(int)[:-1]
    counts = np.diff(np.append(edges, len(step)))
    return Series(
        step=np.add.reduceat(step, edges) / counts,
        low=np.minimum.reduceat(value, edges),
        mean=np.add.reduceat(value, edges) / counts,
        high=np.maximum.reduceat(value, edges),
    )


def smoothed(step: Column, value: Column, weight: Column, points: int = POINTS) -> Series:
    """The exponential moving average over about a fiftieth of the run, weighted by `weight`.

    A loss is a mean over tokens, so a micro-batch of many tokens counts for more.
    """
    counted = np.isfinite(value) & np.isfinite(weight) & (weight > 0)
    step, value, weight = step[counted], value[counted], weight[counted]
    share = 2 / (max(10.0, len(step) / 50) + 1)
    total = weights = 0.0
    averages = np.empty(len(step))
    for index, (x, w) in enumerate(zip(value.tolist(), weight.tolist(), strict=True)):
        total += share * (x * w - total)
        weights += share * (w - weights)
        averages[index] = total / weights
    if len(step) > points:
        chosen = np.linspace(0, len(step) - 1, points).astype(int)
        step, averages = step[chosen], averages[chosen]
    return Series(step, averages, averages, averages)


def spans(values: Column, factor: float = 30.0) -> bool:
    """Whether positive values differ so much that a logarithmic scale shows them better."""
    positive = values[np.isfinite(values) & (values > 0)]
    return len(positive) > 1 and len(positive) == np.isfinite(values).sum() and positive.max() > factor * positive.min()
