"""What must be true after every fault, read from the disk alone."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from faults.world import World
from qlora_engine.job.durable import TEMPORARY
from qlora_engine.job.events import parse_line
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import FINAL, State
from support import foreground


def check(world: World) -> None:
    """Every invariant that holds while jobs are under way."""
    runs = [path for path in world.daemon.home.runs.iterdir() if not path.name.startswith(".")]
    for run in runs:
        whole_files(run)
        one_final_state(run)
        steps_go_back_to_checkpoints_only(run, world)
    no_two_at_once(runs)
    no_job_twice(world)


def check_end(world: World) -> None:
    """Every invariant, when all jobs have ended: each dropped file is one job, done, with the known result."""
    check(world)
    records = world.records()
    lost = world.expected - {record.name for record in records}
    assert not lost, f"never became jobs: {lost}"
    for record in records:
        if record.name in world.expected:
            assert record.state is State.DONE, f"{record.id} is {record.state}: {record.reason}"
            digest = foreground.digest(world.daemon.home.run(record.id).path)
            assert digest == world.reference, f"{record.id} learned something else"


def no_crash_since(world: World, job: JobRecord) -> None:
    """Nothing that ended since the job was as in this record counts as a crash of its own."""
    events = _lines(world.daemon.home.run(job.id).events)
    ended = [event for event in events if event["event"] == "job.exited" and event["attempt"] >= job.attempt]
    assert all(event["outcome"] != "crashed" for event in ended), f"a crash was counted: {ended}"


def trained_on(world: World, job: JobRecord) -> None:
    """The job is in the same attempt as in this record: its process did not notice."""
    attempts = {record.id: record.attempt for record in world.records()}
    assert attempts[job.id] == job.attempt, f"{job.id} was started anew, as attempt {attempts[job.id]}"


def no_bug_since(world: World, errors: int) -> None:
    """The daemon has met nothing that it did not expect, since it had met so much."""
    found = world.daemon.events("internal.error")
    assert len(found) <= errors, found[errors:]


def no_job_twice(world: World) -> None:
    names = Counter(record.name for record in world.records())
    assert all(names[name] <= 1 for name in world.expected), names


def one_final_state(run: Path) -> None:
    finals = [e["to"] for e in _lines(run / "events.jsonl") if e["event"] == "job.state" and e["to"] in FINAL]
    assert len(finals) <= 1, f"{run.name} ended as {finals}"


def steps_go_back_to_checkpoints_only(run: Path, world: World) -> None:
    # A kill may come between a checkpoint's rename and its event; who resumed from it has checked its hashes.
    told = [e for e in _lines(run / "events.jsonl") if e["event"] in ("checkpoint.saved", "training.resumed")]
    saved = {0} | {event["step"] for event in told}
    steps = [(line["attempt"], line["step"]) for line in _lines(run / "metrics.jsonl")]
    for (attempt, step), (next_attempt, next_step) in pairwise(steps):
        where = f"{run.name}: step {step} of attempt {attempt}, then step {next_step} of attempt {next_attempt}"
        assert next_attempt >= attempt, f"two attempts trained at once: {where}"
        if world.disturbed:
            continue  # lines may be missing
        if next_attempt == attempt:
            assert next_step == step + 1, where
        else:
            assert next_step - 1 in saved, where
            assert next_step <= step + 1, f"steps were left out: {where}"


def no_two_at_once(runs: list[Path]) -> None:
    """The times between an attempt's first and last step do not overlap with any other attempt's."""
    spans: dict[tuple[str, int], tuple[str, str]] = {}
    for run in runs:
        for line in _lines(run / "metrics.jsonl"):
            key = run.name, line["attempt"]
            spans[key] = spans.get(key, (line["ts"], ""))[0], line["ts"]
    ordered = sorted((first, last, key) for key, (first, last) in spans.items())
    for (_, last, one), (first, _, other) in pairwise(ordered):
        assert last <= first, f"{one} and {other} trained at the same time"


def whole_files(run: Path) -> None:
    """Whatever can be seen under its name is complete."""
    for name in ("state.json", "spec.json"):
        json.loads((run / name).read_bytes())
    folders = [*(run / "checkpoints").glob("step-*"), *[f for f in [run / "adapters"] if f.exists()]]
    for folder in folders:
        if folder.name.startswith("step-") and (folder.with_name(f".damaged-{folder.name}")).exists():
            continue  # a fault has damaged it on purpose
        try:
            _whole(folder)
        except FileNotFoundError:
            assert not folder.exists(), f"a file of {folder} vanished"  # else it was thinned out while we looked


def _whole(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name.startswith(TEMPORARY):
            continue
        if path.suffix == ".safetensors":
            _whole_safetensors(path)
        elif path.suffix == ".json":
            json.loads(path.read_bytes())


def _whole_safetensors(path: Path) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    assert len(content) == 8 + length + max(ends), f"{path} is not whole"


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        raw = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [event for event in map(parse_line, raw) if event is not None]
