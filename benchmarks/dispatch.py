"""Time the decisions of the dispatcher over many waiting jobs: one line of JSON, milliseconds.

    python benchmarks/dispatch.py --jobs 10000

Which job starts, which one must stop, who need not wait any more; the median and the slowest of many decisions. The
jobs have mixed priorities and ages, a tenth is urgent, a fifth may not start yet, a fifth waits for others.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from datetime import timedelta

from qlora_daemon.dispatcher import Conditions, next_job, to_stop
from qlora_engine.job.record import JobRecord, utc_now
from qlora_engine.job.states import State
from qlora_engine.job.turn import standing

FREE = Conditions(queue_answers=True, gpu_free=True)


def jobs_of(count: int) -> list[JobRecord]:
    """Waiting jobs, the same every time."""
    draw, now = random.Random(0), utc_now()  # noqa: S311
    jobs: list[JobRecord] = []
    for number in range(count):
        made = now - timedelta(seconds=draw.randrange(10**6))
        after = (draw.choice(jobs).id,) if jobs and draw.random() < 0.2 else ()
        jobs.append(
            JobRecord(
                id=f"20261122-143500-job-{number}", name=f"job-{number}", created=made, changed=made, after=after,
                state=State.BLOCKED if after else State.QUEUED, priority=draw.randint(-2, 2),
                urgent=draw.random() < 0.1, not_before=now + timedelta(hours=1) if draw.random() < 0.2 else None,
            )
        )  # fmt: skip
    return jobs


def measure(count: int, rounds: int) -> dict[str, object]:
    """Milliseconds of each decision."""
    jobs = jobs_of(count)
    table = {job.id: job for job in jobs}
    active = jobs[0].model_copy(update={"id": "20261122-143500-active", "state": State.RUNNING, "urgent": False})
    decisions: dict[str, Callable[[], object]] = {
        "next_job": lambda: next_job(jobs, utc_now(), FREE),
        "to_stop": lambda: to_stop([*jobs, active], utc_now(), FREE),
        "unblock": lambda: [standing(job, table.get) for job in jobs if job.state is State.BLOCKED],
    }
    found: dict[str, object] = {"jobs": count, "rounds": rounds}
    for name, decide in decisions.items():
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            decide()
            times.append(1e3 * (time.perf_counter() - started))
        found[name] = {"median_ms": round(statistics.median(times), 2), "slowest_ms": round(max(times), 2)}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.jobs, arguments.rounds)))
