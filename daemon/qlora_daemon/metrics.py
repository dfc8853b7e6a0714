"""Metrics for Prometheus, served on this machine alone, and only where a port is set.

The owner's thread publishes what it knows as one immutable snapshot; a scrape, in a thread of the server's, reads the
newest one. What only changes with events (loss, speed, memory) is kept from them by a sink.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qlora_engine import __version__
from qlora_engine.job.errors import QloradError
from qlora_engine.job.events import Event
from qlora_engine.job.record import JobRecord, utc_now
from qlora_engine.job.service_status import ChildStatus
from qlora_engine.job.states import State

LOOPBACK = "127.0.0.1"
EVERY = 1.0  # seconds between two snapshots at least; one of 10,000 jobs takes some milliseconds

# Fields of `training.report`, what each is called here, and what it means.
REPORTED = {
    "loss": ("loss_nats", "mean training loss since the last report"),
    "learning_rate": ("learning_rate", "at the last optimizer step"),
    "gradient_norm": ("gradient_norm", "at the last optimizer step, before clipping"),
    "tokens_per_second": ("tokens_per_second", "targets a second since the last report"),
    "memory_gb": ("memory_bytes", "active memory of the device"),
    "peak_gb": ("peak_memory_bytes", "peak memory of the device since the start"),
    "process_gb": ("process_memory_bytes", "resident memory of the training process"),
    "seconds_left": ("left_seconds", "until the end at this speed"),
}
GIGA = 1e9


class PortTaken(QloradError):
    """Nothing can be served at the port."""


@dataclass(frozen=True)
class Snapshot:
    """What the owner knows.

    Attributes:
        jobs: how many there are in each state.
        active: id, step and steps of the job that trains, if one does.
        oldest_waiting: since when the job that waits for longest is queued.
        children: of the daemon.
        queue_answers: Redis does.
    """

    jobs: Mapping[State, int] = field(default_factory=dict)
    active: tuple[str, int, int] | None = None
    oldest_waiting: datetime | None = None
    children: tuple[ChildStatus, ...] = ()
    queue_answers: bool = False

    @classmethod
    def of(cls, jobs: Iterable[JobRecord], children: Sequence[ChildStatus], *, queue_answers: bool) -> Snapshot:
        """From all jobs, in one pass."""
        states: Counter[State] = Counter()
        active, oldest = None, None
        for job in jobs:
            states[job.state] += 1
            if job.state is State.QUEUED and (oldest is None or job.changed < oldest):
                oldest = job.changed
            elif job.state in (State.RUNNING, State.STOPPING):
                active = (job.id, job.step, job.steps)
        return cls(dict(states), active, oldest, tuple(children), queue_answers)


class Metrics(Collector):
    """What a scrape is told.

    Args:
        home: whose disk is looked at.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._snapshot = Snapshot()
        self._published = 0.0
        self._reports: dict[str, Any] = {}
        self._validation: float | None = None
        self._of: str | None = None  # the job that these are of

    def __call__(self, event: Event) -> None:
        """Keep what an event says of training."""
        if event["event"] == "training.started":
            self._of, self._reports, self._validation = event.get("job"), {}, None
        elif event["event"] == "training.report":
            self._of, self._reports = event.get("job"), dict(event)
        elif event["event"] == "validation" and event.get("split") == "valid":
            self._validation = event.get("loss")

    @property
    def seconds_until_due(self) -> float:
        """Until the last snapshot is old enough for another."""
        return max(0.0, self._published + EVERY - time.monotonic())

    def look(self, jobs: Iterable[JobRecord], children: Sequence[ChildStatus], *, queue_answers: bool) -> None:
        """Let scrapes see this from now on."""
        self._snapshot = Snapshot.of(jobs, children, queue_answers=queue_answers)
        self._published = time.monotonic()

    def collect(self) -> Iterator[Metric]:
        """In the server's thread: one consistent look."""
        snapshot = self._snapshot
        yield _gauge("info", "the version that runs", 1, version=__version__)
        jobs = GaugeMetricFamily("qlorad_jobs", "jobs by state", labels=["state"])
        for state in State:
            jobs.add_metric([str(state)], snapshot.jobs.get(state, 0))
        yield jobs
        age = (utc_now() - snapshot.oldest_waiting).total_seconds() if snapshot.oldest_waiting else 0.0
        yield _gauge("queue_age_seconds", "how long the job that waits for longest has been queued", max(0.0, age))
        yield _gauge("queue_answers", "whether Redis answers", int(snapshot.queue_answers))
        yield _gauge("disk_free_bytes", "room on the home's disk", shutil.disk_usage(self._home).free)
        starts = CounterMetricFamily("qlorad_child_starts", "starts of the daemon's children", labels=["child"])
        up = GaugeMetricFamily("qlorad_child_running", "whether it runs", labels=["child"])
        for child in snapshot.children:
            starts.add_metric([child.name], child.starts)
            up.add_metric([child.name], int(child.state == "running"))
        yield from (starts, up)
        if snapshot.active is not None:
            yield from self._training(*snapshot.active)

    def _training(self, job: str, step: int, steps: int) -> Iterator[Metric]:
        yield _gauge("training_step", "micro-batches done", step, job=job)
        yield _gauge("training_steps", "micro-batches of the whole run; 0 until its data is read", steps, job=job)
        if self._of != job:
            return
        for key, (name, meaning) in REPORTED.items():
            value = self._reports.get(key)
            if isinstance(value, int | float):
                yield _gauge(f"training_{name}", meaning, value * GIGA if key.endswith("_gb") else value, job=job)
        if self._validation is not None:
            yield _gauge("training_validation_loss_nats", "at the last validation", self._validation, job=job)


def serve(metrics: Metrics, port: int) -> None:
    """Answer scrapes at http://127.0.0.1:PORT/metrics until the process ends.

    Raises:
        PortTaken: another program listens there, or may not be asked to.
    """
    registry = CollectorRegistry()
    registry.register(metrics)
    try:
        start_http_server(port, addr=LOOPBACK, registry=registry)
    except OSError as error:
        raise PortTaken(
            f"Metrics cannot be served at port {port}: {error.strerror or error}.",
            where="QLORAD_METRICS_PORT",
            remedy="Choose another port, and restart the daemon. Training goes on without.",
        ) from None


def _gauge(name: str, meaning: str, value: float, **labels: str) -> Metric:
    family = GaugeMetricFamily(f"qlorad_{name}", meaning, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family
