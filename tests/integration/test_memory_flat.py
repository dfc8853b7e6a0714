"""Memory that does not grow, in short; `benchmarks/flat.py` measures 2,000 steps and ten real jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import flat, foreground
from support.service import Daemon

MOST = 0.02


@pytest.mark.slow
def test_memory_stays_flat_over_the_steps_of_a_job(tmp_path: Path) -> None:
    """A job that needs a little more each step ends a night's training on somebody's Mac."""
    job_file = flat.mixed_job(tmp_path, iters=500, longest=96, hidden=128)  # 9 MB, which events give to 0.1
    run = foreground.train(job_file, tmp_path / "run")
    steps = foreground.lines(run / "metrics.jsonl")
    assert steps[-1]["step"] == 500
    found = flat.growth(steps, 200)
    assert max(found.values()) < MOST, found


@pytest.mark.slow
def test_the_service_stays_flat_over_ten_jobs(daemon: Daemon) -> None:
    """It runs for months: what each job left behind would add up."""
    daemon.start()
    found = flat.service_memory(daemon, 10)
    grown = flat.growth_of_service(found)
    assert max(grown.values()) < MOST, found
