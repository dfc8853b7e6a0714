"""`qlora bench` as a real process: both trainers, their order, the lock, and what an end in the middle leaves."""

from __future__ import annotations

import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from qlora_engine.job.lock import holder_of
from support import foreground, tiny
from support.ended import has_ended

SHORT = ["--seconds", "0.2", "--warm-up", "0"]
LIMIT = 120


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    tiny.make_model(folder / "model")
    tiny.make_data(folder / "data")
    tiny.write_job(folder / "job.json", tiny.job(folder / "model", folder / "data"))
    return folder


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "qlora_client.cli", "bench", *arguments]


@contextmanager
def bench(made: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A bench in whose first run a trainer is at work, and that trainer; neither outlives the block."""
    arguments = [str(made / "job.json"), "--case", "padded", "--seconds", "60"]
    process = subprocess.Popen(command(*arguments), env=foreground.environment(made), stderr=subprocess.PIPE, text=True)
    trainers: list[psutil.Process] = []
    try:
        end = time.monotonic() + 30
        while not trainers:
            assert time.monotonic() < end, "no trainer was started"
            assert process.poll() is None
            trainers = [child for child in psutil.Process(process.pid).children() if "baseline" in _said(child)]
            time.sleep(0.05)
        yield process, trainers[0]
    finally:
        for child in trainers:
            if child.is_running():
                child.kill()
        process.kill()
        process.communicate(timeout=10)


def work_folder(trainer: psutil.Process) -> Path:
    """Where the bench keeps what it needs, from the command of a trainer."""
    (folder,) = {Path(*path.parts[:-2]) for path in map(Path, trainer.cmdline()) if path.name == "config.yaml"}
    return folder


def _said(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


def ended(process: psutil.Process) -> bool:
    """Within half a minute; an orphan that nobody reaps has ended, too."""
    end = time.monotonic() + 30
    while not has_ended(process):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def finished(made: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """What a bench that succeeds prints: its object, and what it said meanwhile."""
    done = subprocess.run(
        command(str(made / "job.json"), *SHORT, "--json", *arguments),
        env=foreground.environment(made),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    for comparison in result["comparisons"]:
        for pair in comparison["pairs"]:
            check_pair(pair)
    return result, done.stderr


def check_pair(pair: dict[str, Any]) -> None:
    engine, mlx_lm = pair["engine"], pair["mlx_lm"]
    assert pair["ratio"] == pytest.approx(engine["tokens_per_second"] / mlx_lm["tokens_per_second"], rel=1e-3)
    for run in (engine, mlx_lm):
        assert run["seconds"] >= 0.2
        assert run["targets"] > run["reports"] >= 1
        assert 0 < run["peak_gb"] < run["process_gb"] < 2


@pytest.mark.slow
def test_both_trainers_are_measured_in_turn(made: Path, tmp_path: Path) -> None:
    """What a bench gives is one honest number; a script must find it, and a person the picture."""
    picture = tmp_path / "bench.svg"
    result, said = finished(made, "--pairs", "2", "--case", "padded", "--plot", str(picture))
    ratios = [pair["ratio"] for pair in result["comparisons"][0]["pairs"]]
    assert len(ratios) == 2
    assert result["ratio"] == pytest.approx(statistics.median(ratios), abs=1e-3)
    assert (result["ratio_min"], result["ratio_max"]) == (min(ratios), max(ratios))
    assert result["machine"]["backend"] in ("cpu", "cuda", "metal")
    assert result["job"]["batch_size"] == 2
    turns = re.findall(r"pair (\d) of 2: (mlx_lm|the engine), padded rows: ", said)
    assert turns == [("1", "mlx_lm"), ("1", "the engine"), ("2", "the engine"), ("2", "mlx_lm")]
    assert picture.read_text().count("<svg") == 1


@pytest.mark.slow
def test_full_rows_are_made_and_measured(made: Path) -> None:
    """Whoever packs by hand for mlx_lm already wants to know what is left to gain; every row must then be full."""
    result, _ = finished(made, "--pairs", "1", "--case", "packed")
    (pair,) = result["comparisons"][0]["pairs"]
    inputs = tiny.job(made, made)["max_seq_length"] - 1
    assert pair["mlx_lm"]["targets"] == 2 * inputs * pair["mlx_lm"]["reports"]  # rows of an iteration
    assert pair["engine"]["targets"] % (4 * inputs) == 0  # rows of an optimizer step


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_bench_that_is_ended_leaves_nothing(made: Path, number: signal.Signals, code: int) -> None:
    """Whoever ends it wants the GPU back: no trainer may stay behind, no lock, no folder, no traceback."""
    with bench(made) as (process, trainer):
        folder = work_folder(trainer)
        assert folder.is_dir()
        holder = holder_of(made / "gpu.lock")
        assert holder is not None
        assert holder["job"] == "qlora bench"
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == code
        assert "Traceback" not in errors
        assert ended(trainer)
    assert holder_of(made / "gpu.lock") is None
    assert not folder.exists()


@pytest.mark.slow
def test_a_killed_bench_gives_the_gpu_back_only_when_its_trainer_has_ended(made: Path) -> None:
    """A trainer that outlives its bench would otherwise train beside the next job; and it may not outlive it long."""
    with bench(made) as (process, trainer):
        folder = work_folder(trainer)
        trainer.suspend()
        process.kill()
        process.wait(timeout=10)
        assert holder_of(made / "gpu.lock") is not None
        trainer.resume()
        assert ended(trainer)
    assert holder_of(made / "gpu.lock") is None
    shutil.rmtree(folder)


@pytest.mark.slow
def test_a_trainer_that_refuses_the_job_is_quoted(made: Path, tmp_path: Path) -> None:
    """A bench that fails without a reason would look like a bug of ours."""
    tiny.write_job(tmp_path / "job.json", tiny.job(made / "model", made / "data", num_layers=5))
    done = subprocess.run(
        command(str(tmp_path / "job.json"), "--case", "padded", *SHORT),
        env=foreground.environment(made),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 65
    assert "mlx_lm's trainer ended with code 1" in done.stderr
    assert "Requested to train 5 layers" in done.stderr
    assert "Traceback" not in done.stderr
