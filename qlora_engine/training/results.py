"""What a micro-batch and an optimizer step give, and how to wait for it."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from qlora_engine.training.targets import Targets
from qlora_engine.training.vectors import Vectors


@dataclass(frozen=True)
class MicroBatch:
    """What one micro-batch gave.

    Attributes:
        loss: summed over its targets, nats, as computed.
        count: its targets.
        gradient_norm: of its summed gradient, divided by its targets.
        good: False if the guard kept it from the window.
        positions: that were computed; `filled` of them held a token.
    """

    loss: float
    count: int
    gradient_norm: float
    good: bool
    positions: int = 0
    filled: int = 0


@dataclass(frozen=True)
class Update:
    """What an optimizer step did.

    Attributes:
        applied: False if the window was empty, or the guard kept what is not finite from the weights.
        count: targets of the window.
        gradient_norm: of the mean gradient, before clipping.
        learning_rate: that was used.
    """

    applied: bool
    count: int
    gradient_norm: float
    learning_rate: float


@dataclass(frozen=True)
class StartedMicroBatch:
    """A micro-batch that is being computed."""

    _targets: Targets
    _arrays: tuple[mx.array, mx.array, mx.array]
    _window: tuple[Vectors, mx.array]

    def result(self) -> MicroBatch:
        """Wait for it."""
        mx.eval(self._window, self._arrays)
        loss, norm, good = self._arrays
        size = (self._targets.positions, self._targets.filled)
        return MicroBatch(float(loss), self._targets.count, float(norm), bool(good), *size)


@dataclass(frozen=True)
class StartedUpdate:
    """An optimizer step that is being computed."""

    _arrays: tuple[mx.array, mx.array, mx.array, mx.array]
    _rate_factor: float

    def result(self) -> Update:
        """Wait for it."""
        mx.eval(self._arrays)
        norm, applied, count, rate = self._arrays
        return Update(bool(applied), int(count), float(norm), float(rate) * self._rate_factor)
