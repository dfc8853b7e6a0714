"""A request and its key reach the disk together, so that a daemon that dies in between loses neither."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from qlora_daemon.jobs import JobTable
from qlora_daemon.orders import Orders
from qlora_daemon.runner import Runner
from qlora_engine.job import durable
from qlora_engine.job.events import EventLog
from qlora_engine.job.folder import Home
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from qlora_worker.connection import connect, keys_of
from qlora_worker.messages import Request
from qlora_worker.queue import JobQueue
from qlora_worker.settings import Settings


def test_a_daemon_that_dies_while_it_cancels_does_not_take_the_cancellation_for_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key on disk without its cancellation would have the request answered when it comes again, and never done."""
    settings = Settings(home=tmp_path)
    home = Home(tmp_path)
    home.make()
    record = JobRecord.new("20261122-143501-a", "a").moved(State.QUEUED)
    home.run(record.id).path.mkdir()
    record.store(home.run(record.id).state)
    jobs = JobTable(home, [])
    assert not list(jobs.load())
    queue = JobQueue(connect(settings, timeout=1.0), keys_of(settings))  # a queued job is cancelled without Redis
    runner = Runner(jobs, queue, gpu_lock=tmp_path / "gpu.lock", cancel_seconds=1.0, relay=lambda _event: None)
    write = durable.write_json
    writes: list[Path] = []

    def die_after_the_first(path: Path, value: Any) -> None:
        if writes:
            raise KeyboardInterrupt  # stands for SIGKILL: nothing here catches it
        writes.append(path)
        write(path, value)

    monkeypatch.setattr(durable, "write_json", die_after_the_first)
    request = Request(key="0" * 32, kind="cancel", payload={"job": record.id})
    with contextlib.suppress(KeyboardInterrupt):
        Orders(home, jobs, runner, EventLog([])).carry_out(request)
    stored = JobRecord.load(home.run(record.id).state)
    assert (request.key in stored.asked) == (stored.state is State.CANCELLED)
