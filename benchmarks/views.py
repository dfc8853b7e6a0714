"""What the views of the terminal cost where there is much to see; one line of JSON.

    python benchmarks/views.py [--jobs 10000] [--steps 100000] [--under /tmp]

A home of so many jobs, half of which wait, and one that trains with so many micro-batches behind it; files only, no
daemon. Commands are the fastest of five, the interpreter's start included. A look of `qlora top` is the median of
twenty, in CPU time of the process, after the first; memory is the process's resident set after them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / part) for part in (".", "worker", "clients")]

from qlora_client.top.look import Looking  # noqa: E402  # found by the line above
from qlora_client.top.page import Room, page  # noqa: E402
from qlora_engine.job.folder import Home, RunFolder  # noqa: E402
from qlora_engine.job.record import JobRecord  # noqa: E402
from qlora_engine.job.states import State  # noqa: E402

FIRST = datetime(2026, 11, 1, tzinfo=UTC)
REPORT_EVERY = 10  # micro-batches


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--under", type=Path, default=Path("/tmp"), help="where the home is made")  # noqa: S108  # short
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="q", dir=arguments.under))
    try:
        home = Home(folder)
        trains = make(home, arguments.jobs, arguments.steps)
        print(json.dumps({"jobs": arguments.jobs, "steps": arguments.steps} | measure(home, trains)))
    finally:
        shutil.rmtree(folder)


def make(home: Home, jobs: int, steps: int) -> str:
    """Write the home; returns the id of the job that trains."""
    home.make()
    job_id = ""
    for number in range(jobs):
        made = FIRST + timedelta(seconds=20 * number)
        state = State.RUNNING if number == jobs - 1 else State.QUEUED if number % 2 else State.DONE
        job_id = f"{made:%Y%m%d-%H%M%S}-sweep-{number}"
        record = JobRecord(id=job_id, name=f"sweep-{number}", state=state, created=made, changed=made, steps=steps)
        run = home.run(job_id)
        run.path.mkdir()
        run.state.write_text(json.dumps(record.model_dump(mode="json")))  # without the daemon's syncs
    train(home.run(job_id), steps)
    return job_id


def train(run: RunFolder, steps: int) -> None:
    """Write what a run says of so many micro-batches."""
    draw = random.Random(0)  # noqa: S311  # not a secret
    measured = {"memory_gb": 12.4, "peak_gb": 13.1, "cache_gb": 1.0, "process_gb": 14.2, "tokens_per_second": 412.0}
    head = {"ts": FIRST.isoformat(), "level": "debug", "job": run.id, "attempt": 1}
    with run.metrics.open("w") as metrics, run.events.open("w") as events:
        for step in range(1, steps + 1):
            loss = 0.5 + math.exp(-5 * step / steps) + draw.gauss(0, 0.1)
            said = {"step": step, "steps": 2 * steps, "update": step // 2, "loss": loss, "tokens": 512, **measured}
            metrics.write(json.dumps({**head, "event": "training.step", **said, "seconds": 1.0, "rows": 4}) + "\n")
            if step % REPORT_EVERY == 0:
                events.write(json.dumps({**head, "event": "training.report", **said, "steps_per_second": 1.0}) + "\n")


def measure(home: Home, trains: str) -> dict[str, Any]:
    """The commands, then the looks of one process."""
    result: dict[str, Any] = {"cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    for name, arguments in {
        "help": ["--help"],
        "ls": ["ls"],
        "ls_all": ["ls", "--all"],
        "ls_since": ["ls", "--since", "2026-11-03"],
        "ls_failed": ["ls", "--state", "failed"],
        "show": ["show", trains],
        "top_once": ["top", "--once"],
    }.items():
        result[f"{name}_seconds"] = min(seconds(home, arguments) for _ in range(5))
    tab = {"_QLORA_COMPLETE": "complete_bash", "COMP_WORDS": "qlora show 2026", "COMP_CWORD": "2"}
    result["complete_seconds"] = min(seconds(home, [], tab) for _ in range(5))
    looking = Looking(home)
    looking.look()
    looks = [cpu_ms(looking) for _ in range(20)]
    looking.close()
    memory = psutil.Process().memory_info().rss / 1e6
    return {**result, "look_cpu_ms": round(statistics.median(looks), 1), "top_mb": round(memory)}


def seconds(home: Home, arguments: list[str], more: Mapping[str, str] | None = None) -> float:
    """How long a command takes, with `more` in its environment."""
    path = os.pathsep.join(str(ROOT / part) for part in (".", "worker", "clients"))
    environment = {**os.environ, "QLORAD_HOME": str(home.path), "PYTHONPATH": path, **(more or {})}
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "qlora_client.cli", *arguments], env=environment, check=True, capture_output=True
    )
    return round(time.perf_counter() - began, 3)


def cpu_ms(looking: Looking) -> float:
    """What one look and its page take."""
    began = time.process_time()
    page(looking.look(), Room(120, 40))
    return 1000 * (time.process_time() - began)


if __name__ == "__main__":
    main()
