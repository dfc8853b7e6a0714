"""What one run has said, read as it grows: how far it is, its losses, its validations; bounded, however long it is."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from qlora_client.curve import Curve, CurveReader
from qlora_client.follow import Tail
from qlora_client.progress import Progress, after

if TYPE_CHECKING:
    from qlora_engine.job.events import Event
    from qlora_engine.job.folder import RunFolder

KEPT_REPORTS = 5


class RunFeed:
    """A run's events and metrics. `look` reads what is new; nothing is read twice.

    Attributes:
        progress: after all that was read.
        losses, validations: of training and on the validation rows.
        reports: the last `training.report` events, oldest first.
        finished: the last `training.done`, or None.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.progress = Progress()
        self.validations = Curve()
        self.reports: deque[Event] = deque(maxlen=KEPT_REPORTS)
        self.finished: Event | None = None
        self._events = Tail(run.events)
        self._metrics = CurveReader(run.metrics)

    @property
    def losses(self) -> Curve:
        """Of training, a micro-batch each."""
        return self._metrics.curve

    def look(self) -> None:
        """Read what has been added since the last look.

        Raises:
            OSError: a file cannot be read.
        """
        for event in self._events.events():
            self._take(event)
        if newest := self._metrics.look():
            self.progress = after(self.progress, newest)

    def close(self) -> None:
        """Give the files back."""
        self._events.close()
        self._metrics.close()

    def _take(self, event: Event) -> None:
        self.progress = after(self.progress, event)
        match event["event"]:
            case "training.report":
                self.reports.append(event)
            case "training.done":
                self.finished = event
            case "guard.rolled_back" if isinstance(step := event.get("to_step"), int):
                self.validations.give_up_from(step + 1)
            case "training.restarted":
                self.validations.give_up_from(0)
            case "validation" if event.get("split") == "valid":
                step, loss = event.get("step"), event.get("loss")
                if isinstance(step, int) and isinstance(loss, int | float) and loss - loss == 0:
                    self.validations.add(step, loss)


def feed_of(run: RunFolder) -> RunFeed:
    """What a run has said by now. Raises `OSError` if it cannot be read."""
    feed = RunFeed(run)
    feed.look()
    feed.close()
    return feed
