"""The validation losses of a run, and which of a sweep's jobs is so much worse than the others that it is ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from qlora_engine.job.events import Event, parse_line
from qlora_engine.job.folder import RunFolder

FAR = 3  # times a loss, from which on it is said in times

Losses = dict[int, float]  # nats by step, micro-batches done; infinite for one that is no number


def validation_in(event: Event) -> tuple[int, float] | None:
    """Step and loss of a `validation` event on the validation rows; None for any other event."""
    step, loss = event.get("step"), event.get("loss")
    if event["event"] != "validation" or event.get("split") != "valid" or not isinstance(step, int):
        return None
    return step, float(loss) if isinstance(loss, int | float) and math.isfinite(loss) else math.inf


def validations_of(run: RunFolder) -> Losses:
    """What a run has said of itself so far. A step that was done twice counts as it was done last."""
    found: Losses = {}
    try:
        with run.events.open("rb") as file:
            for line in file:
                event = parse_line(line) if b'"validation"' in line else None  # few lines are worth the parsing
                if event is not None and (validation := validation_in(event)) is not None:
                    found[validation[0]] = validation[1]
    except FileNotFoundError:
        return {}
    return found


def best_of(losses: Mapping[int, float], until: float = math.inf) -> tuple[float, int] | None:
    """The lowest loss after training began, up to a step, and where it was first; None where there is none."""
    known = ((loss, step) for step, loss in losses.items() if 0 < step <= until and math.isfinite(loss))
    return min(known, default=None)


@dataclass(frozen=True)
class Outdone:
    """A validation that is too much worse than another job's.

    Attributes:
        step, loss: of the validation.
        best, by: the lowest loss that another had by that step, and the id of the first such job.
    """

    step: int
    loss: float
    best: float
    by: str

    def reason(self, name: str) -> str:
        """Why the job is ended, for a person.

        Args:
            name: what the better job is called.
        """
        if not math.isfinite(self.loss):
            return f"validation loss at step {self.step} is no number, and {name} had {self.best:.3f}"
        ratio = self.loss / self.best if self.best > 0 else math.inf
        how = f"{ratio - 1:.0%} above" if ratio < FAR else f"{ratio:.0f} times" if ratio < math.inf else "not"
        return f"validation loss {self.loss:.3f} at step {self.step}, {how} the {self.best:.3f} of {name}"


def outdone(step: int, loss: float, others: Mapping[str, Mapping[int, float]], share: float) -> Outdone | None:
    """Whether a validation is by more than `share` above the best that another job had at the same or an earlier step.

    The validation before training, at step 0, says nothing of the settings: it never counts, on either side.

    Args:
        step, loss: of the validation.
        others: the validations of the other jobs of the sweep, by their ids.
        share: of the better loss: 0.1 for 10%.
    """
    if step <= 0:
        return None
    lowest = [(found[0], job) for job, losses in others.items() if (found := best_of(losses, step)) is not None]
    if not lowest:
        return None
    best, by = min(lowest)
    return Outdone(step, loss, best, by) if loss > best * (1 + share) else None
