"""From a dropped file to adapters that mlx_lm loads, through the real daemon, worker and training process."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from qlora_engine.job.events import Event, parse_line
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from support import tiny
from support.service import Daemon, wait_until

from .conftest import Qlora

DONE_SECONDS = 60.0


def job_folder(parent: Path, name: str, model: Path, **keys: object) -> Path:
    folder = parent / name
    tiny.make_data(folder / "data", train=23, valid=5)
    tiny.write_job(folder / "job.yaml", tiny.job(model, Path("data"), name=name, mask_prompt=True, **keys))
    return folder


def drop(daemon: Daemon, folder: Path) -> None:
    hidden = daemon.home.jobs / f".{folder.name}"
    shutil.copytree(folder, hidden)
    hidden.rename(daemon.home.jobs / folder.name)


def lines(path: Path) -> list[Event]:
    return [event for line in path.read_bytes().splitlines() if (event := parse_line(line)) is not None]


def steps(daemon: Daemon, job: JobRecord) -> list[int]:
    return [event["step"] for event in lines(daemon.home.run(job.id).metrics)]


def wait_for_step(daemon: Daemon, job: JobRecord, step: int) -> None:
    metrics = daemon.home.run(job.id).metrics
    wait_until(f"step {step}", lambda: metrics.exists() and step in steps(daemon, job), 30.0)


def generate(model: Path, adapters: Path) -> subprocess.CompletedProcess[str]:
    command = [
        "generate",
        "--model",
        str(model),
        "--adapter-path",
        str(adapters),
        "--prompt",
        "12?",
        "--max-tokens",
        "3",
    ]
    return subprocess.run(
        [sys.executable, "-m", "mlx_lm", *command], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_dropped_folder_becomes_adapters_that_mlx_lm_loads(
    daemon: Daemon, qlora: Qlora, model: Path, tmp_path: Path
) -> None:
    """The whole promise in one line: drop a folder, get adapters."""
    drop(daemon, job_folder(tmp_path, "odd-even", model, iters=24, test=False))
    job = daemon.wait_for_state("odd-even", State.DONE, State.FAILED, seconds=DONE_SECONDS)
    assert job.state is State.DONE, job.reason
    run = daemon.home.run(job.id)

    names = [event["event"] for event in lines(run.events)]
    assert names.index("job.accepted") < names.index("training.started") < names.index("training.done")
    assert steps(daemon, job) == list(range(1, 25))
    losses = [event["loss"] for event in lines(run.events) if event["event"] == "validation"]
    assert losses[-1] < losses[0]
    assert not list(daemon.home.taking.iterdir())
    assert (daemon.home.accepted / job.id / "data" / "train.jsonl").exists()

    answer = generate(model, run.adapters)
    assert answer.returncode == 0, answer.stderr
    assert "Generation: 3 tokens" in answer.stdout

    assert job.id in qlora("ls").stdout
    shown = json.loads(qlora("show", "odd-even", "--json").stdout)
    assert shown["state"] == "done"
    assert "training.done" in qlora("logs", "odd-even", "--json").stdout


def test_a_job_goes_on_where_the_daemon_was_stopped_and_ends_the_same(
    daemon: Daemon, model: Path, tmp_path: Path
) -> None:
    """SIGTERM to the service, as launchd sends it, may cost no step that a checkpoint holds and change no result."""
    for name in ("stopped", "undisturbed"):
        drop(daemon, job_folder(tmp_path, name, model, iters=150, save_every=20))
        daemon.wait_for_state(name, State.RUNNING, seconds=30.0)
        job = daemon.job(name)
        if name == "stopped":
            wait_for_step(daemon, job, 45)
            assert daemon.stop() == 0
            assert daemon.job(name).state is State.QUEUED
            assert not daemon.processes()
            daemon.start()
        job = daemon.wait_for_state(name, State.DONE, State.FAILED, seconds=DONE_SECONDS)
        assert job.state is State.DONE, job.reason
    stopped, undisturbed = daemon.job("stopped"), daemon.job("undisturbed")
    assert stopped.attempt == 2

    done = steps(daemon, stopped)
    went_back = [before - after for before, after in itertools.pairwise(done) if after <= before]
    assert all(back <= 2 for back in went_back), "more than the window that was under way was done again"
    results = [daemon.home.run(job.id) for job in (stopped, undisturbed)]
    first, second = ({event["step"]: event["loss"] for event in lines(run.metrics)} for run in results)
    assert first == second
    first_adapters, second_adapters = ((run.adapters / "adapters.safetensors").read_bytes() for run in results)
    assert first_adapters == second_adapters


def test_a_running_job_is_cancelled_within_ten_seconds(
    daemon: Daemon, qlora: Qlora, model: Path, tmp_path: Path
) -> None:
    """Who changes his mind must get the GPU back."""
    answer = qlora("submit", str(job_folder(tmp_path, "endless", model, iters=1_000_000)))
    assert answer.returncode == 0, answer.stderr
    job_id = answer.stdout.strip()
    daemon.wait_for_state("endless", State.RUNNING, seconds=30.0)
    wait_for_step(daemon, daemon.job("endless"), 3)
    started = time.monotonic()
    answer = qlora("cancel", job_id)
    assert answer.returncode == 0, answer.stderr
    assert time.monotonic() - started < 10
    assert daemon.job("endless").state is State.CANCELLED
    assert not any("qlora_worker.task" in " ".join(process.cmdline()) for process in daemon.processes())


def test_jobs_run_one_at_a_time_and_the_urgent_number_goes_first(daemon: Daemon, model: Path, tmp_path: Path) -> None:
    """Two trainings at once would take the memory that the preflight of each counted on."""
    drop(daemon, job_folder(tmp_path, "first", model, iters=300))
    daemon.wait_for_state("first", State.RUNNING, seconds=30.0)
    for name, priority in (("later", 0), ("sooner", 5)):
        drop(daemon, job_folder(tmp_path, name, model, iters=4, priority=priority))
        daemon.wait_for_state(name, State.QUEUED, seconds=30.0)
    for name in ("first", "sooner", "later"):
        assert daemon.wait_for_state(name, State.DONE, State.FAILED, seconds=DONE_SECONDS).state is State.DONE
    spans = {}
    for name in ("first", "sooner", "later"):
        events = lines(daemon.home.run(daemon.job(name).id).events)
        times = {event["event"]: event["ts"] for event in events}
        spans[name] = (times["training.started"], times["training.done"])
        if shutil.which("g++"):  # what MLX compiled for the first serves the others
            assert ("kernels.lent" in times, "kernels.kept" in times) == (name != "first", name == "first")
    assert spans["first"][1] < spans["sooner"][0]
    assert spans["sooner"][1] < spans["later"][0]


def test_a_training_process_that_is_killed_is_started_again_from_its_checkpoint(
    daemon: Daemon, model: Path, tmp_path: Path
) -> None:
    """A crash costs the work since the last checkpoint and nothing else."""
    drop(daemon, job_folder(tmp_path, "killed", model, iters=200, save_every=20))
    daemon.wait_for_state("killed", State.RUNNING, seconds=30.0)
    job = daemon.job("killed")
    wait_for_step(daemon, job, 50)
    daemon.training(job.id).send_signal(signal.SIGKILL)
    job = daemon.wait_for_state("killed", State.DONE, State.FAILED, seconds=DONE_SECONDS)
    assert job.state is State.DONE, job.reason
    resumed = [event["step"] for event in lines(daemon.home.run(job.id).events) if event["event"] == "training.resumed"]
    assert len(resumed) == 1
    assert resumed[0] >= 40
    assert sorted(set(steps(daemon, job))) == list(range(1, 201))
