"""How long a start with many rows takes, the first time and the second, and in how much memory; one line of JSON.

    python benchmarks/data.py [--rows 1000000] [--format text] [--model FOLDER]

Each start is a process of its own and does what a run does in its phase `data`: hash the file, tokenize it or take its
tokens from the cache, plan the order of the rows, count them, and then lay out the first window. `hash` is a part of
`seconds`. Memory is the process's peak over what it had before, 10^6 bytes; `read` is after 20,000 rows at random.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
PATHS = [str(ROOT / part) for part in (".", "daemon", "worker", "clients", "tests")]
sys.path[:0] = PATHS

from qlora_engine.job.datafiles import DataFile, DataFormat, digest  # noqa: E402  # found by the line above
from qlora_engine.job.events import EventLog  # noqa: E402
from qlora_engine.job.resolved import ResolvedJob  # noqa: E402
from qlora_engine.job.spec import JobSpec  # noqa: E402
from qlora_engine.training.ladder import Layout  # noqa: E402
from qlora_engine.training.model import load_base  # noqa: E402
from qlora_engine.training.rows import plan_of, read_data, say_data  # noqa: E402
from qlora_engine.training.token_cache import TokenCache  # noqa: E402
from support import tiny  # noqa: E402

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("", "n", "st")]
READ = 20_000  # rows


def write(folder: Path, rows: int, kind: DataFormat) -> None:
    """Rows of 5 to 25 words."""
    draw = random.Random(0)  # noqa: S311
    folder.mkdir()
    with (folder / "train.jsonl").open("w") as file:
        for number in range(rows):
            text = f"{number} " + " ".join(draw.choices(WORDS, k=draw.randrange(5, 26)))
            row = {"text": text} if kind is DataFormat.TEXT else {"prompt": text, "completion": WORDS[number % 60]}
            file.write(json.dumps(row) + "\n")


def start(folder: Path, job: ResolvedJob) -> dict[str, object]:
    """What one process does in its phase `data`."""
    base = load_base(job)
    began_with = psutil.Process().memory_info().rss
    hash_started = time.perf_counter()
    digest(Path(job.data["train"].path))
    hashed = time.perf_counter() - hash_started
    log, started = EventLog([]), time.perf_counter()
    cache = TokenCache(folder / "tokens", 10**11)
    data = read_data(job, base, Layout.of(job.spec), beat=lambda: None, cache=cache, log=log)
    plan = plan_of(job, data.documents)
    say_data(job, data, plan, log)
    window = next(plan.windows(epoch=0, index=0, step=0))
    seconds, grown = time.perf_counter() - started, _peak() - began_with
    rows, draw = data.documents["train"], random.Random(0)  # noqa: S311
    read_started = time.perf_counter()
    tokens = sum(len(rows[draw.randrange(len(rows))]) for _ in range(READ))
    return {
        "from": data.tokens_from,
        "seconds": round(seconds, 2),
        "hash": round(hashed, 2),
        "peak_mb": round(grown / 1e6, 1),
        "read_mb": round((_peak() - began_with) / 1e6, 1),
        "us_a_row_read": round(1e6 * (time.perf_counter() - read_started) / READ, 1),
        "tokens": int(rows.lengths.sum()),
        "mean": round(tokens / READ, 1),
        "first": len(window.micro_batches),
    }


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(rows: int, kind: DataFormat, model: Path | None) -> dict[str, object]:
    """The first start and two more."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = model or tiny.make_model(folder / "model", layers=1, vocabulary=WORDS)
        write(folder / "data", rows, kind)
        path = folder / "data" / "train.jsonl"
        file = DataFile(path=str(path), rows=rows, bytes=path.stat().st_size, sha256=digest(path), format=kind)
        spec = JobSpec(model=str(model), data=str(folder / "data"), num_layers=1)
        ResolvedJob(spec=spec, model_path=str(model), data={"train": file}).store(folder / "spec.json")
        found = [_process(folder) for _ in range(3)]
        kept = sum(part.stat().st_size for part in (folder / "tokens").glob("*/*.bin"))
    return {
        "rows": rows, "format": kind, "file_mb": round(file.bytes / 1e6, 1), "kept_mb": round(kept / 1e6, 1),
        "cpus": os.cpu_count(), "starts": found,
    }  # fmt: skip


def _process(folder: Path) -> dict[str, object]:
    done = subprocess.run([sys.executable, __file__, "--start", str(folder)], stdout=subprocess.PIPE, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--format", type=DataFormat, default=DataFormat.TEXT, choices=["text", "completion"])
    parser.add_argument("--model", type=Path, help="folder whose tokenizer makes the tokens; a tiny one without")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)  # one process of the measurement
    arguments = parser.parse_args()
    if arguments.start:
        print(json.dumps(start(arguments.start, ResolvedJob.load(arguments.start / "spec.json"))))
    else:
        print(json.dumps(measure(arguments.rows, arguments.format, arguments.model)))
