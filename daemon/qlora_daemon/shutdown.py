"""The ladder by which the worker, and through it the training process, is brought to its end in time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Step(Enum):
    """What a rung does. The worker passes the first two on, and kills the training process at the third."""

    ASK = "SIGTERM to the worker"
    KILL = "SIGKILL to the worker"


@dataclass(frozen=True)
class Ladder:
    """Rungs with the seconds from the one before; `KILL` is the last."""

    rungs: tuple[tuple[float, Step], ...]

    def due(self, climbed: int, waited: float) -> Step | None:
        """The next step, when `waited` seconds have passed since the one before."""
        if climbed >= len(self.rungs) or waited < self.rungs[climbed][0]:
            return None
        return self.rungs[climbed][1]


def worker_ladder(stop_seconds: float, *, active: bool) -> Ladder:
    """How the worker is stopped: with patience while it trains, quickly when it does not."""
    if active:
        after = min(10.0, stop_seconds)  # a stop at once needs no more, however little a checkpoint got
        return Ladder(((0.0, Step.ASK), (stop_seconds, Step.ASK), (after, Step.ASK), (3.0, Step.KILL)))
    return Ladder(((0.0, Step.ASK), (3.0, Step.ASK), (1.0, Step.KILL)))
