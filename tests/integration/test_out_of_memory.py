"""Memory that runs out: a real limit under the real daemon, and an error of MLX in the foreground."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from qlora_engine.job.events import Event
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from support import foreground, tiny
from support.service import REAL, Daemon, daemon_in, short_home, wait_until

ROOM = 150_000_000  # bytes beside what a small job needs: too few for a batch of four, enough for its parts
RUNGS = ["recompute", "split", "split"]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="macOS enforces no such limit")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Narrow and deep: much memory for attention, little to compute."""
    return tiny.make_model(tmp_path_factory.mktemp("model"), layers=12)


@pytest.fixture(scope="module")
def limited(model: Path) -> Iterator[Daemon]:
    """A daemon whose worker has a limit on its address space, a little over what a small job needs."""
    with short_home() as home, daemon_in(home, module=REAL, environment={"QLORAD_REPORT": "false"}) as daemon:
        daemon.start()
        needed = _drop_and_measure(daemon, model)
        with suppress(psutil.NoSuchProcess):
            daemon.child("worker").rlimit(resource.RLIMIT_AS, (needed + ROOM, needed + ROOM))
        yield daemon


def _drop_and_measure(daemon: Daemon, model: Path) -> int:
    """The most address space that a job of one short row takes, bytes."""
    write_job(daemon, model, "small", tokens=32, batch_size=1, iters=20)
    most = 0

    def ended() -> bool:
        nonlocal most
        for event in daemon.events("training.started"):
            with suppress(psutil.Error):
                most = max(most, psutil.Process(event["pid"]).memory_info().vms)
        return bool(daemon.events("job.exited"))

    wait_until("the small job has ended", ended, 60)
    assert daemon.job("small").state is State.DONE, daemon.job("small").reason
    assert most > 0
    return most


def write_job(daemon: Daemon, model: Path, name: str, *, tokens: int, **keys: object) -> None:
    """Drop a job whose rows all have this length."""
    draw = random.Random(0)
    hidden = daemon.home.jobs / f".{name}"
    (hidden / "data").mkdir(parents=True)
    rows = (json.dumps({"text": "".join(draw.choices("abcdefgh ", k=tokens + 8))}) for _ in range(8))
    (hidden / "data" / "train.jsonl").write_text("\n".join(rows) + "\n")
    wanted = {"iters": 2, "grad_accumulation_steps": 1, "val_batches": 0, "max_seq_length": tokens, **keys}
    tiny.write_job(hidden / "job.yaml", tiny.job(model, Path("data"), name=name, **wanted))
    hidden.rename(daemon.home.jobs / name)


def ended(daemon: Daemon, name: str) -> tuple[JobRecord, list[Event]]:
    """The job with this name when it has ended, and its events."""
    job = daemon.wait_for_state(name, State.DONE, State.FAILED, seconds=120)
    return job, foreground.lines(RunFolder(daemon.home.runs / job.id).events)


def named(events: list[Event], name: str) -> list[Event]:
    return [event for event in events if event["event"] == name]


def test_a_job_that_does_not_fit_goes_on_in_a_way_that_needs_less(limited: Daemon, model: Path) -> None:
    """On MLX's CPU backend a failed allocation is a signal: the job must not be lost for it, nor go on for ever."""
    write_job(limited, model, "wide", tokens=512, batch_size=4, iters=1)
    job, events = ended(limited, "wide")
    assert job.state is State.DONE, job.reason
    rungs = named(events, "ladder.rung")
    assert [rung["rung"] for rung in rungs] == RUNGS[: len(rungs)] != []
    assert {rung["effective_batch"] for rung in rungs} == {4}
    assert "memory limit" in rungs[0]["reason"]
    assert job.attempt == len(rungs) + 1
    assert job.crashes == 0
    exits = limited.events("job.exited", job=job.id)
    assert [event["outcome"] for event in exits] == ["out_of_memory"] * len(rungs) + ["done"]


def test_a_job_that_allows_no_rung_fails_with_a_remedy(limited: Daemon, model: Path) -> None:
    """Trying the same again would fail again; a person must learn what to change."""
    write_job(limited, model, "unwilling", tokens=512, batch_size=4, on_out_of_memory="fail")
    job, events = ended(limited, "unwilling")
    assert job.state is State.FAILED
    assert not named(events, "ladder.rung")
    (failure,) = named(events, "training.failed")
    assert failure["error"] == "OutOfMemory"
    assert "max_seq_length" in failure["remedy"]
    assert "memory.limit_gb" in job.reason
    assert job.attempt == 2


def test_the_foreground_engine_starts_itself_again_when_memory_runs_out(tmp_path: Path) -> None:
    """On a GPU running out of memory is an error: the run must end as one that was told to need less at once."""
    model, data = tiny.make_model(tmp_path / "model"), tiny.make_data(tmp_path / "data")
    keys = tiny.job(model, data, iters=4, batch_size=4)
    short, run = tiny.write_job(tmp_path / "short.yaml", keys), tmp_path / "short"
    done = subprocess.run(
        [sys.executable, "-m", "support.short_of_memory", str(short), "--run", str(run), "--json"],
        env=foreground.environment(tmp_path, QLORAD_CPU_BLAS="off"),
        capture_output=True,
        text=True,
        timeout=foreground.TIME_LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (rung,) = foreground.events(run, "ladder.rung")
    assert (rung["rung"], rung["effective_batch"]) == ("recompute", 8)
    assert "Unable to allocate" in rung["reason"]
    assert len(foreground.events(run, "training.started")) == 2

    told = tiny.write_job(tmp_path / "told.yaml", {**keys, "grad_checkpoint": True})
    other = foreground.train(told, tmp_path / "told", QLORAD_CPU_BLAS="off")
    assert foreground.losses(run) == pytest.approx(foreground.losses(other), rel=1e-6)
