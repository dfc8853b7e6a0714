"""How fast jobs are accepted, and what a long queue costs; one line of JSON.

    python benchmarks/intake.py [--jobs 10000] [--files 1000] [--redis-url URL] [--under /tmp]

The real daemon with its real survey, in a home of its own, on a tiny model: the jobs of a sweep, one data set and
another seed each. The GPU lock is held meanwhile, so that nothing trains. `accepted_per_second` counts from the first
request to the last answer, each of which means a run folder that was forced to the disk; `files_per_second` from the
moment when all files lie in the watched folder to their last `job.accepted`, the settling time included.
`disk_folders_per_second` is what the disk does by itself: folders of four files made and renamed, nothing synced.
Memory is the daemon's resident set with all those jobs queued; `ls` is the fastest of five.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
PATHS = [str(ROOT / part) for part in (".", "daemon", "worker", "clients", "tests")]
sys.path[:0] = PATHS

from qlora_engine.job import lock  # noqa: E402  # found by the line above
from qlora_engine.job.folder import Home  # noqa: E402
from qlora_engine.job.together import write_new  # noqa: E402
from qlora_worker.connection import connect, keys_of  # noqa: E402
from qlora_worker.settings import Settings  # noqa: E402
from support import tiny  # noqa: E402
from support.service import REAL, Daemon  # noqa: E402

AT_ONCE = 500  # requests that are asked before the answers are read


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--redis-url", help="a server of your own instead of the embedded one")
    parser.add_argument("--under", type=Path, default=Path("/tmp"), help="where the home is made")  # noqa: S108  # short
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="q", dir=arguments.under)).resolve()
    try:
        print(json.dumps(measure(folder, arguments.jobs, arguments.files, arguments.redis_url)))
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, jobs: int, files: int, redis_url: str | None) -> dict[str, Any]:
    """Everything, in one home."""
    tiny.make_model(folder / "model")
    tiny.make_data(folder / "data", train=200)
    environment = {"QLORAD_REDIS_URL": redis_url or ""}
    daemon = Daemon(folder / "h", module=REAL, environment=environment)
    daemon.home.make()
    settings = Settings(home=daemon.home.path, gpu_lock=daemon.home.path / "gpu.lock", redis_url=redis_url)
    result: dict[str, Any] = {"jobs": jobs, "cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    result["disk_folders_per_second"] = round(1000 / timed(lambda: make_folders(folder / "disk", 1000)))
    with lock.held(settings.gpu_lock_path, {"pid": os.getpid(), "job": "benchmark"}):
        daemon.start()
        try:
            result["warm_up_seconds"] = round(submit(settings, folder, 1, "first"), 2)
            before = cpu(daemon)
            seconds = submit(settings, folder, jobs, "sweep")
            result |= {
                "accepted_per_second": round(jobs / seconds),
                "daemon_cpu_ms_a_job": round(1000 * (cpu(daemon) - before) / jobs, 2),
                "daemon_mb": round(psutil.Process(daemon.process.pid).memory_info().rss / 1e6),
                "ls_seconds": fastest(daemon, "ls"),
                "ls_all_seconds": fastest(daemon, "ls", "--all"),
            }
            before = cpu(daemon)
            time.sleep(10)
            result["idle_cpu_percent"] = round(10 * (cpu(daemon) - before), 1)
            result["files_per_second"] = round(files / drop(daemon, folder, files))
            result["daemon_mb_in_the_end"] = round(psutil.Process(daemon.process.pid).memory_info().rss / 1e6)
            daemon.stop()
            result["start_seconds"] = round(timed(lambda: start(daemon)), 2)
            result["daemon_mb_after_a_start"] = round(psutil.Process(daemon.process.pid).memory_info().rss / 1e6)
            daemon.stop()
        finally:
            daemon.end()
    return result


def make_folders(parent: Path, count: int) -> None:
    """As admission makes them: under another name, with four files of a kilobyte each."""
    parent.mkdir()
    for number in range(count):
        made = parent / f".tmp-{number}"
        made.mkdir()
        for name in ("job.json", "spec.json", "state.json", "events.jsonl"):
            write_new(made / name, bytes(1000))
        made.rename(parent / str(number))


def submit(settings: Settings, folder: Path, count: int, name: str) -> float:
    """Ask for so many jobs and wait for all answers; returns seconds."""
    keys, names = keys_of(settings), [uuid.uuid4().hex for _ in range(count)]
    with connect(settings, timeout=60.0) as connection:
        began = time.monotonic()
        for first in range(0, count, AT_ONCE):
            asked = names[first : first + AT_ONCE]
            with connection.pipeline(transaction=False) as pipeline:
                for number, key in enumerate(asked, first):
                    payload = {
                        "text": job(folder, number, f"{name}-{number}"),
                        "name": "sweep.json",
                        "base": str(folder),
                    }
                    request = {"key": key, "kind": "submit", "payload": payload}
                    pipeline.xadd(keys.requests, {"request": json.dumps(request)})
                pipeline.execute()
        for key in names:
            found: Any = connection.blpop([keys.answer(key)], timeout=50)
            answer = json.loads(found[1])
            if not answer["ok"]:
                raise SystemExit(answer["what"])
        return time.monotonic() - began


def job(folder: Path, seed: int, name: str) -> str:
    """One job of a sweep."""
    return json.dumps(tiny.job(folder / "model", folder / "data") | {"seed": seed, "name": name})


def drop(daemon: Daemon, folder: Path, count: int) -> float:
    """Drop so many job files at once and wait until all are jobs; returns seconds."""
    for number in range(count):
        daemon.drop(f"dropped-{number}.json", job(folder, number, f"dropped-{number}"))
    return timed(lambda: wait_until(lambda: len(dropped(daemon.home)) >= count))


def wait_until(done: Callable[[], bool]) -> None:
    """Look again and again."""
    while not done():
        time.sleep(0.1)


def dropped(home: Home) -> list[str]:
    """Run folders of dropped files."""
    return [name for name in os.listdir(home.runs) if "-dropped-" in name]  # noqa: PTH208


def start(daemon: Daemon) -> None:
    """Start it again, until it has read every run folder."""
    before = len(daemon.events("daemon.started"))
    daemon.start(ready=False)
    wait_until(lambda: len(daemon.events("daemon.started")) > before)


def fastest(daemon: Daemon, *arguments: str) -> float:
    """Seconds of a command of the client."""
    command = [sys.executable, "-P", "-m", "qlora_client.cli", *arguments]

    def call() -> None:
        subprocess.run(command, env=daemon.environment, stdout=subprocess.DEVNULL, check=True)

    return round(min(timed(call) for _ in range(5)), 2)


def cpu(daemon: Daemon) -> float:
    """Seconds of processor time that the daemon has used."""
    times = psutil.Process(daemon.process.pid).cpu_times()
    return times.user + times.system


def timed(action: Callable[[], object]) -> float:
    """Seconds that something takes."""
    began = time.monotonic()
    action()
    return time.monotonic() - began


if __name__ == "__main__":
    main()
