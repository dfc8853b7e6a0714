"""Metrics for Prometheus: what a scrape is told, to this machine alone."""

from __future__ import annotations

import socket
import urllib.request
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from qlora_daemon.metrics import EVERY, Metrics, PortTaken, serve
from qlora_daemon.observers import Observers
from qlora_engine.job.record import JobRecord, utc_now
from qlora_engine.job.service_status import ChildStatus
from qlora_engine.job.states import State
from qlora_worker.settings import Settings
from support.service import wait_until

JOB = "20261123-080000-poems"


def record(job_id: str, *states: State, **changes: Any) -> JobRecord:
    made = JobRecord.new(job_id, job_id)
    for state in states:
        made = made.moved(state)
    return made.noting(**changes)


def scraped(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Values by name and labels."""
    registry = CollectorRegistry()
    registry.register(metrics)
    return parsed(generate_latest(registry).decode())


def parsed(text: str) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(text)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


CHILD = ChildStatus(
    name="worker", state="running", pid=1, starts=3, restarts=0, changed=utc_now(), last_exit=None, delay=None
)
REPORT: dict[str, Any] = {
    "ts": "", "level": "info", "event": "training.report", "job": JOB, "step": 20, "loss": 1.5,
    "tokens_per_second": 80.0, "memory_gb": 1.25, "peak_gb": None,
}  # fmt: skip


def test_jobs_are_counted_by_state_and_the_queue_has_an_age(tmp_path: Path) -> None:
    """An alarm for a queue that stands still needs both."""
    waiting = record("a", State.QUEUED, changed=utc_now() - timedelta(seconds=90))
    jobs = [waiting, record("b", State.QUEUED), record("c", State.QUEUED, State.STARTING, State.RUNNING, State.DONE)]
    metrics = Metrics(tmp_path)
    metrics.look(jobs, [CHILD], queue_answers=True)
    found = scraped(metrics)
    assert (found["qlorad_jobs", "queued"], found["qlorad_jobs", "done"], found["qlorad_jobs", "failed"]) == (2, 1, 0)
    assert 90 <= found["qlorad_queue_age_seconds",] < 100
    assert (found["qlorad_child_starts_total", "worker"], found["qlorad_child_running", "worker"]) == (3, 1)
    assert found["qlorad_queue_answers",] == 1
    assert found["qlorad_disk_free_bytes",] > 0
    assert not [name for name, *_ in found if name.startswith("qlorad_training")]


def test_the_job_that_trains_shows_its_numbers_and_no_other_jobs(tmp_path: Path) -> None:
    """The loss of the job before would start the curve of the next."""
    metrics = Metrics(tmp_path)
    running = record(JOB, State.QUEUED, State.STARTING, State.RUNNING, step=25, steps=100)
    metrics.look([running], [], queue_answers=True)
    metrics(REPORT)
    metrics(REPORT | {"event": "validation", "split": "valid", "loss": 2.5})
    metrics(REPORT | {"event": "validation", "split": "test", "loss": 9.0})
    found = scraped(metrics)
    assert (found["qlorad_training_step", JOB], found["qlorad_training_steps", JOB]) == (25, 100)
    assert found["qlorad_training_loss_nats", JOB] == 1.5
    assert found["qlorad_training_memory_bytes", JOB] == 1.25e9
    assert found["qlorad_training_validation_loss_nats", JOB] == 2.5
    assert ("qlorad_training_peak_memory_bytes", JOB) not in found
    metrics(REPORT | {"event": "training.started", "job": "next"})
    metrics.look([running.moved(State.DONE), running.noting(id="next")], [], queue_answers=True)
    found = scraped(metrics)
    assert found["qlorad_training_step", "next"] == 25
    assert ("qlorad_training_loss_nats", "next") not in found


def test_a_scrape_before_the_first_look_is_answered(tmp_path: Path) -> None:
    """Prometheus may be faster than a daemon with 10,000 runs."""
    assert scraped(Metrics(tmp_path))["qlorad_jobs", "queued"] == 0


def test_it_is_served_to_this_machine_and_a_port_that_is_taken_is_refused_clearly(tmp_path: Path) -> None:
    """Numbers of a private machine are nobody else's; and the daemon must not end for want of a port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve(Metrics(tmp_path), port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert parsed(answer.read().decode())["qlorad_jobs", "queued"] == 0
    with socket.socket() as other:
        other.settimeout(2)
        assert other.connect_ex(("127.0.0.2", port)) != 0
    with pytest.raises(PortTaken, match=f"port {port}") as refused:
        serve(Metrics(tmp_path), port)
    assert refused.value.remedy


@pytest.mark.parametrize("value", ["0", "65536", "x"])
def test_a_port_is_a_port(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """The mistake is named before anything starts."""
    monkeypatch.setenv("QLORAD_METRICS_PORT", value)
    with pytest.raises(Exception, match="QLORAD_METRICS_PORT"):
        Settings.read()


def test_a_change_soon_after_a_publication_is_owed(tmp_path: Path) -> None:
    """A job that ends within that second must not be counted only when the daemon wakes by itself, half a minute on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(home=tmp_path, metrics_port=port)
    settings.folders.make()
    observers = Observers(settings, post=lambda _: None)
    assert observers.seconds_until_due == float("inf")
    observers.publish([], [], queue_answers=True)
    assert observers.seconds_until_due == float("inf")
    observers.publish([], [], queue_answers=True)
    assert 0 < observers.seconds_until_due <= EVERY
    wait_until("it is due", lambda: observers.seconds_until_due == 0)
    observers.publish([], [], queue_answers=True)
    assert observers.seconds_until_due == float("inf")
