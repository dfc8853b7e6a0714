"""Whether memory stays flat, over 2,000 steps of one job and over ten jobs in a row; prints lines of JSON.

    python benchmarks/flat.py [--steps 2000] [--jobs 10]

The job has rows of mixed lengths and runs in the foreground; the ten go through a real daemon, its worker and real
training processes. Each share says how far memory was ever over its value after step 200, or after the second job.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATHS = [str(ROOT / part) for part in (".", "daemon", "worker", "clients", "tests")]
sys.path[:0] = PATHS

from support import flat, foreground, tiny  # noqa: E402  # found by the line above
from support.service import REAL, daemon_in, short_home  # noqa: E402

AFTER_STEP, AFTER_JOB = 200, 2


def job(steps: int) -> dict[str, object]:
    """One job over mixed lengths."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        words = [f"word{number}" for number in range(3000)]
        file = flat.mixed_job(folder, iters=steps, longest=160, hidden=64, layers=3, vocabulary=words)
        run = foreground.train(file, folder / "run", limit=3600)
        found = foreground.lines(run / "metrics.jsonl")
    shown = [step for step in found if step["step"] % AFTER_STEP == 0]
    return {
        "what": "one job", "steps": len(found), "after": AFTER_STEP, "growth": flat.growth(found, AFTER_STEP),
        **{name: [step[name] for step in shown] for name in flat.MEASURED},
    }  # fmt: skip


def service(jobs: int) -> dict[str, object]:
    """Jobs in a row through the service."""
    with short_home() as home, daemon_in(home, module=REAL) as daemon:
        daemon.start()
        model, data = tiny.make_model(home / "model"), tiny.make_data(home / "data")
        found = flat.service_memory(daemon, jobs, **tiny.job(model, data))
    return {
        "what": "jobs in a row", "jobs": jobs, "after": AFTER_JOB, "growth": flat.growth_of_service(found, AFTER_JOB),
        **{f"{of}_mb": [round(each[of] / 1e6, 2) for each in found] for of in found[0]},
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=10)
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(PATHS)
    print(json.dumps(job(arguments.steps)), flush=True)
    print(json.dumps(service(arguments.jobs)))
