"""How long a daemon takes to know its run folders at start, and to compare them with Redis. One line of JSON.

    python benchmarks/reconcile.py --jobs 10000

Makes that many run folders with records in a temporary home, reads them as the daemon does at its start, and compares
them with what would be in Redis and in the list of processes. The best of five, after one to fill the system's cache.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from qlora_daemon.jobs import JobTable
from qlora_daemon.reconcile import Disk, Processes, Redis, compare
from qlora_daemon.training_processes import training_processes
from qlora_engine.job.folder import Home
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State

FIRST = datetime(2026, 11, 22, tzinfo=UTC)
REPEATS = 5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    count = parser.parse_args().jobs
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        home.make()
        fill(home, count)
        read = best(lambda: list(JobTable(home, []).load()))
        jobs = JobTable(home, [])
        list(jobs.load())
        look = best(lambda: compare(seen(jobs), Redis(), Processes(None, training_processes(home))))
    print(json.dumps({"jobs": count, "read_seconds": round(read, 3), "compare_seconds": round(look, 3)}))


def fill(home: Home, count: int) -> None:
    """Run folders, two in three of them of jobs that have ended."""
    for number in range(count):
        job_id = f"{FIRST + timedelta(seconds=number):%Y%m%d-%H%M%S}-job"
        record = JobRecord.new(job_id, "job", request=str(number)).moved(State.QUEUED)
        if number % 3:
            record = record.moved(State.STARTING, attempt=1).moved(State.RUNNING).moved(State.DONE)
        run = home.run(job_id)
        run.path.mkdir()
        run.state.write_text(json.dumps(record.model_dump(mode="json"), indent=2))


def seen(jobs: JobTable) -> Disk:
    """The run folders as the daemon sees them every minute."""
    return Disk({record.id: record for record in jobs}, frozenset(jobs.folders()))


def best(action: Callable[[], object]) -> float:
    """Seconds of the fastest of some."""
    action()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    main()
