"""A small home at a fixed time: a job that trains, jobs that wait for many reasons, jobs that have ended."""

from __future__ import annotations

import json
import math
import random
from datetime import UTC, datetime, timedelta
from typing import Any

from qlora_engine.job.folder import Home, RunFolder
from qlora_engine.job.record import JobRecord
from qlora_engine.job.service_status import ChildStatus, ServiceStatus
from qlora_engine.job.states import State
from qlora_engine.job.vocabulary import EVENTS

NOW = datetime(2026, 11, 23, 14, 35, 2, tzinfo=UTC)
TRAINS = "20261123-121504-sql-assistant"
DAEMON = 4117  # its process id
STEPS, DONE = 4000, 2480  # micro-batches of the job that trains
PACE = 3.2  # seconds a micro-batch

_WAITS = (
    ("20261123-133012-support-tone", State.QUEUED, "", {"urgent": True}),
    ("20261123-134155-tool-calls", State.QUEUED, "", {"priority": 10}),
    ("20261123-120841-release-notes", State.QUEUED, "", {"not_before": NOW + timedelta(hours=7, seconds=1498)}),
    ("20261123-140230-tool-calls-long", State.BLOCKED, "waits for 20261123-134155-tool-calls", {}),
    ("20261123-093310-field-reports", State.HELD, "asked for · `qlora release` lets it go on", {}),
)
_ENDED = (
    ("20261123-081500-release-notes", State.DONE, "", 400),
    ("20261122-221409-recipes", State.FAILED, "3 crashes in a row without a new checkpoint", 120),
    ("20261122-190007-recipes-small", State.CANCELLED, "asked for", 80),
    ("20261122-171233-haiku", State.DONE, "", 300),
)


def make(home: Home) -> None:
    """Write it."""
    home.make()
    _trains(home.run(TRAINS))
    for job_id, state, reason, more in _WAITS:
        _store(home, job_id, state, reason, **more)
    for job_id, state, reason, step in _ENDED:
        _store(home, job_id, state, reason, step=step, steps=400, attempt=1, ended=_made(job_id) + timedelta(hours=1))
    child = {"state": "running", "starts": 1, "restarts": 0, "changed": NOW, "last_exit": None, "delay": None}
    ServiceStatus(
        version="0.1.0",
        pid=DAEMON,
        started=NOW - timedelta(days=2, hours=5),
        queue_answers=True,
        children=[ChildStatus(name=name, pid=DAEMON + 4, **child) for name in ("valkey", "worker")],
        job=TRAINS,
    ).store(home.status)
    log = [*_log(), *_events()]
    home.service_log.write_text(_as_lines(sorted(log, key=lambda event: str(event["ts"]))))


def _made(job_id: str) -> datetime:
    return datetime.strptime(job_id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)


def _store(home: Home, job_id: str, state: State, reason: str, **more: Any) -> None:
    home.run(job_id).path.mkdir(parents=True)
    made = _made(job_id)
    record = JobRecord(id=job_id, name=job_id[16:], state=state, reason=reason, created=made, changed=made)
    record.noting(**more).store(home.run(job_id).state)


def _trains(run: RunFolder) -> None:
    made, began = _made(TRAINS), _began()
    run.checkpoints.joinpath("step-002400").mkdir(parents=True)
    run.path.joinpath("job.yaml").write_text("model: qwen3-8b-4bit\n")
    run.output.write_text("")
    record = JobRecord(
        id=TRAINS, name="sql-assistant", state=State.RUNNING, created=made, changed=began, started=began,
        attempt=1, step=DONE, steps=STEPS, checkpoint_step=2400,
    )  # fmt: skip
    record.store(run.state)
    run.events.write_text(_as_lines(_events()))
    run.metrics.write_text(_as_lines(_micro_batches()))


def _began() -> datetime:
    return NOW - timedelta(seconds=PACE * DONE + 60)


def _event(name: str, seconds: float, /, **fields: Any) -> dict[str, Any]:
    """An event so many seconds after training began; fields that are not given are null."""
    kind = EVENTS[name]
    when = (_began() + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
    head = {"ts": when, "level": kind.level, "event": name, "job": TRAINS, "attempt": 1}
    return {**head, **dict.fromkeys(kind.fields), **fields}


def _loss(step: int, *, floor: float) -> float:
    return floor + 1.62 * math.exp(-6 * step / STEPS)


def _measured(step: int) -> dict[str, Any]:
    draw = random.Random(step)
    return {
        "step": step,
        "steps": STEPS,
        "loss": round(_loss(step, floor=0.52) + draw.gauss(0, 0.06), 3),
        "tokens": draw.randrange(300, 700),
        "tokens_per_second": round(draw.gauss(412, 9), 1),
        "memory_gb": round(12.4 + 0.3 * draw.random(), 2),
        "peak_gb": 14.86,
    }


def _micro_batches() -> list[dict[str, Any]]:
    return [_event("training.step", PACE * step + 60, seconds=PACE, **_measured(step)) for step in range(1, DONE + 1)]


def _events() -> list[dict[str, Any]]:
    found = [
        _event("job.state", 0, **{"from": "queued", "to": "starting", "reason": ""}),
        _event("training.started", 4, backend="metal", device="Apple M3 Pro", pid=5230),
        _event("job.state", 4, **{"from": "starting", "to": "running", "reason": ""}),
        _event("memory.limits", 5, limit_gb=27.0, wired_gb=27.0, cache_gb=4.0, device_gb=36.0, source="the device"),
        _event("model.loaded", 11, model="qwen3-8b-4bit", model_type="qwen3", bits=4, parameters=8_190_000_000,
               trainable=21_800_000, memory_gb=4.61, dequantized=False),
        _event("data.loaded", 12, format="completion", train=16_000, valid=400, tokens=2_140_000, supervised=522_000,
               steps=STEPS, updates=STEPS // 2, truncated=12, lost_share=0.001, nothing_to_learn=0),
        _event("phase.started", 60, phase="train"),
    ]  # fmt: skip
    for step in range(0, DONE + 1, 20):
        seconds = PACE * step + 60
        if step:
            left = PACE * (STEPS - step)
            report = _measured(step) | {"steps_per_second": 1 / PACE, "seconds_left": left, "learning_rate": 1e-4}
            found.append(_event("training.report", seconds, **report))
        if step % 200 == 0:
            loss = round(_loss(step, floor=0.61), 3)
            perplexity = round(math.exp(loss), 2)
            about = {"step": step, "split": "valid", "loss": loss, "perplexity": perplexity, "tokens": 13_000}
            found.append(_event("validation", seconds, **about))
        if step % 400 == 0:
            found.append(_event("checkpoint.saved", seconds, step=step, bytes=262_000_000, why="count", path="…"))
    return found


def _log() -> list[dict[str, Any]]:
    """What the service said of others."""

    def said(job_id: str | None, when: datetime, name: str, /, **fields: Any) -> dict[str, Any]:
        head = {"ts": when.isoformat(timespec="milliseconds"), "level": EVENTS[name].level, "event": name}
        return {**head, **({"job": job_id} if job_id else {}), **dict.fromkeys(EVENTS[name].fields), **fields}

    waiting = [
        said(job_id, _made(job_id), "job.state", **{"from": "accepted", "to": state, "reason": reason})
        for job_id, state, reason, _ in _WAITS
    ]
    power = said(None, NOW - timedelta(minutes=31), "machine.power", source="ac", percent=64, low=False)
    return [*waiting, power]


def _as_lines(events: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(event) + "\n" for event in events)
