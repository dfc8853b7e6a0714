"""Who is told of events: the service log, a terminal, metrics, and people far away."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from qlora_daemon.log import RotatingLog, console
from qlora_daemon.mail import Post
from qlora_daemon.messenger import Messenger
from qlora_engine.job.errors import QloradError
from qlora_engine.job.events import EventLog, Sink
from qlora_engine.job.record import JobRecord
from qlora_engine.job.service_status import ChildStatus
from qlora_worker.settings import Settings

if TYPE_CHECKING:
    from qlora_daemon.metrics import Metrics


class Observers:
    """All of them, for one daemon.

    Args:
        settings: of the daemon.
        post: tells the owner what became of a message.

    Attributes:
        sinks: take every event, in the owner's thread.
    """

    def __init__(self, settings: Settings, post: Post) -> None:
        home = settings.folders
        self._port = settings.metrics_port
        self._metrics, self._failed = _serve(settings)
        self._owes = False
        self._messenger = Messenger(settings, post)
        self.sinks: list[Sink] = [
            RotatingLog(home.service_log, max_bytes=settings.log_bytes, keep=settings.log_files),
            self._messenger,
        ]
        if self._metrics is not None:
            self.sinks.append(self._metrics)
        if sys.stderr.isatty():
            self.sinks.append(console())

    def begin(self, log: EventLog) -> None:
        """Say what is served, and send messages from now on."""
        if self._failed is not None:
            log.emit("metrics.failed", what=self._failed.what, where=self._failed.where, remedy=self._failed.remedy)
        elif self._metrics is not None:
            log.emit("metrics.serving", url=f"http://127.0.0.1:{self._port}/metrics")
        self._messenger.start()

    def publish(self, jobs: Iterable[JobRecord], children: Sequence[ChildStatus], *, queue_answers: bool) -> None:
        """Let metrics show how things stand; now and then, since a look at all jobs takes time."""
        if self._metrics is None:
            return
        self._owes = self._metrics.seconds_until_due > 0
        if not self._owes:
            self._metrics.look(jobs, children, queue_answers=queue_answers)

    @property
    def seconds_until_due(self) -> float:
        """Until what was published too lately to be published again is to be; infinite when nothing is owed."""
        return self._metrics.seconds_until_due if self._metrics is not None and self._owes else float("inf")

    def stop(self) -> None:
        """Send nothing more."""
        self._messenger.stop()


def _serve(settings: Settings) -> tuple[Metrics | None, QloradError | None]:
    """Begin to serve metrics where a port is set; without one prometheus_client is not even imported."""
    if settings.metrics_port is None:
        return None, None
    from qlora_daemon.metrics import Metrics, PortTaken, serve  # noqa: PLC0415

    metrics = Metrics(settings.folders.path)
    try:
        serve(metrics, settings.metrics_port)
    except PortTaken as error:
        return None, error
    return metrics, None
