"""A daemon that runs on: what Redis holds does not grow with the jobs, and what is cleaned away is forgotten."""

from __future__ import annotations

import json

import pytest

from qlora_client.cli import main
from qlora_engine.job.states import State
from qlora_worker.connection import connect
from support.service import Daemon, wait_until


def run_jobs(daemon: Daemon, *names: str) -> None:
    """Run short jobs to their end."""
    for name in names:
        daemon.drop(f"{name}.yaml", daemon.text(iters=1, name=name))
    for name in names:
        daemon.wait_for_state(name, State.DONE, seconds=60.0)


def lasting_keys(daemon: Daemon) -> dict[str, int]:
    """What is in Redis and does not expire, with the bytes that it takes."""
    with connect(daemon.settings(), timeout=5.0) as connection:
        keys = [key for key in connection.scan_iter() if connection.ttl(key) == -1]
        return {key.decode(): int(connection.memory_usage(key) or 0) for key in keys}


@pytest.mark.embedded
def test_redis_holds_no_more_after_many_jobs_than_after_a_few(shared: Daemon) -> None:
    """A key a job would be a leak that shows after a year, with thousands of them."""
    run_jobs(shared, "first", "second")
    few = lasting_keys(shared)
    run_jobs(shared, *(f"more-{number}" for number in range(5)))
    wait_until("the last attempt is taken out", lambda: lasting_keys(shared).keys() <= few.keys(), 10.0)
    many = lasting_keys(shared)
    assert sum(many.values()) <= sum(few.values()) + 1000


def test_a_running_daemon_forgets_what_is_cleaned_and_says_so(
    shared: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The client asks it; the one that runs stays, whatever is asked for."""
    run_jobs(shared, "ended")
    shared.drop("runs.yaml", shared.text(iters=1000, name="runs"))
    runs = shared.wait_for_state("runs", State.RUNNING)
    for name in ("QLORAD_HOME", "QLORAD_GPU_LOCK"):
        monkeypatch.setenv(name, shared.environment[name])
    ended = shared.job("ended")
    before = len(shared.jobs())
    assert main(["clean", "--keep", "0", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["items"]) == before - 1
    assert [job.id for job in shared.jobs()] == [runs.id]
    assert shared.wait_for("job.cleaned", job=ended.id)["part"] == "run"
    assert not list(shared.home.runs.glob(".removed-*"))
    assert shared.requests().ask("retry", {"job": ended.id}).error == "NoSuchJob"
    assert shared.requests().ask("cancel", {"job": runs.id}).ok
    shared.wait_for_state("runs", State.CANCELLED)
    run_jobs(shared, "ended")  # the same file and data once more
    assert not shared.events("state.reconciled")
