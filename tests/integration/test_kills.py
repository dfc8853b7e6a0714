"""Twenty stops at chosen moments, by SIGTERM and SIGKILL, and the run ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from qlora_engine.job.durable import TEMPORARY
from support import foreground, tiny
from support.foreground import Engine

STOPS = 20
KINDS = ("load", "window", "window", "epoch", "validation", "save")
SIGNALS = (signal.SIGTERM, signal.SIGKILL)
PLAIN = {"QLORAD_CPU_BLAS": "off"}  # a start takes half as long; other tests resume with OpenBLAS
SAVE_EVERY, EVAL_EVERY, EPOCH, STEPS = 6, 10, 14, 70  # micro-batches


@pytest.fixture(scope="module")
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job with everything that can go wrong in a resume: dropout, recomputed layers, masks, windows of four that an
    epoch's end cuts to two, a schedule, and a validation that takes long enough to be hit.
    """
    folder = tmp_path_factory.mktemp("kills")
    model, data = tiny.make_model(folder / "model"), tiny.make_data(folder / "data", train=2 * EPOCH - 1, valid=80)
    keys = tiny.job(
        model,
        data,
        iters=STEPS,
        mask_prompt=True,
        grad_checkpoint=True,
        optimizer="adamw",
        lora_parameters={"rank": 4, "scale": 8.0, "dropout": 0.1},
        lr_schedule={"name": "cosine_decay", "arguments": [1e-3, 40], "warmup": 5},
        grad_accumulation_steps=4,
        grad_clip=1.0,
        steps_per_report=7,
        save_every=SAVE_EVERY,
        steps_per_eval=EVAL_EVERY,
    )
    return tiny.write_job(folder / "job.yaml", keys)


@dataclass(frozen=True)
class Story:
    """Where the moments of the job lie, by step, as its undisturbed run showed them."""

    inside_window: frozenset[int]
    epoch_ends: frozenset[int]
    validated: frozenset[int]
    saved: frozenset[int]

    @classmethod
    def of(cls, run: Path) -> Story:
        steps = foreground.lines(run / "metrics.jsonl")
        return cls(
            frozenset(a["step"] for a, b in pairwise(steps) if a["update"] == b["update"]),
            frozenset(a["step"] for a, b in pairwise(steps) if a["epoch"] != b["epoch"]),
            frozenset(foreground.validations(run)) - {0},
            frozenset(event["step"] for event in foreground.events(run, "checkpoint.saved")) - {0},
        )

    def steps_of(self, kind: str) -> frozenset[int]:
        """The micro-batches after which a moment of this kind comes next."""
        return {
            "window": self.inside_window,
            "epoch": self.epoch_ends,
            "validation": self.validated,
            "save": self.saved,
        }[kind]


@pytest.mark.slow
def test_a_run_that_is_stopped_twenty_times_ends_the_same(job_file: Path) -> None:
    """A preempted, killed or crashed job may not learn anything else than one that ran through."""
    undisturbed = foreground.train(job_file, job_file.parent / "undisturbed", **PLAIN)
    story = Story.of(undisturbed)
    draw = random.Random(20)
    moments = [(kind, number) for kind in KINDS for number in SIGNALS] * 2
    draw.shuffle(moments)
    run = job_file.parent / "stopped"
    hit: Counter[tuple[str, signal.Signals]] = Counter()
    for kind, number in moments[:STOPS]:
        hit[_stop_at(kind, number, story, job_file, run), number] += 1
    foreground.train(job_file, run, **PLAIN)

    assert sum(hit.values()) == STOPS
    assert all(hit[moment] for moment in set(moments)), f"some stops fell into no moment of their kind: {hit}"
    assert len(foreground.losses(undisturbed)) == STEPS
    assert foreground.losses(run) == foreground.losses(undisturbed)
    assert foreground.validations(run) == foreground.validations(undisturbed)
    assert foreground.digest(run) == foreground.digest(undisturbed)
    assert _last_reports(run) == _last_reports(undisturbed)


def _last_reports(run: Path) -> dict[int, tuple[float, float, float]]:
    """What was reported of every step, without times and memory."""
    reports = foreground.events(run, "training.report")
    return {event["step"]: (event["loss"], event["learning_rate"], event["gradient_norm"]) for event in reports}


def _stop_at(kind: str, number: signal.Signals, story: Story, job_file: Path, run: Path) -> str:
    """Start, stop at the next moment of a kind, and say which kind of moment it was by what the process left."""
    before = Before.of(run)
    with Engine(job_file, run, **PLAIN) as engine:
        if kind == "load":
            engine.wait_for("phase.started", phase="load")
        else:
            engine.wait_for("training.step", step=min(s for s in story.steps_of(kind) if s > before.step))
        saving = kind == "save" and _freeze_in_a_save(run / "checkpoints", engine)
        engine.process.send_signal(number)
        engine.process.send_signal(signal.SIGCONT)
        code = engine.end()
    assert code == (75 if number == signal.SIGTERM else -number), f"{kind}, {number}"
    return "save" if saving else _moment(kind, story, run, before)


@dataclass(frozen=True)
class Before:
    """What a process found: the step of the newest checkpoint, and how many events."""

    step: int
    events: int

    @classmethod
    def of(cls, run: Path) -> Before:
        return cls(_newest(run), len(foreground.lines(run / "events.jsonl")) if run.exists() else 0)


def _newest(run: Path) -> int:
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")), default=0)


def _freeze_in_a_save(checkpoints: Path, engine: Engine) -> bool:
    """Stop the process where a checkpoint is half written; False when it ended before that could be done."""
    process = psutil.Process(engine.process.pid)
    while engine.process.poll() is None:
        if not _half_written(checkpoints):
            continue
        process.suspend()
        while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            pass
        if _half_written(checkpoints):
            return True
        process.resume()  # it was just done
    return False


def _half_written(checkpoints: Path) -> bool:
    return any(name.startswith(TEMPORARY) for name in os.listdir(checkpoints))  # noqa: PTH208  # the fastest look


def _moment(kind: str, story: Story, run: Path, before: Before) -> str:
    """The kind of moment that a stop fell into, or `train` where it came too late for the one that was meant."""
    if kind == "load":
        return kind
    last = foreground.lines(run / "metrics.jsonl")[-1]["step"]
    new = [(event["event"], event.get("step")) for event in foreground.lines(run / "events.jsonl")[before.events :]]
    fell_there = {
        # A window that was not finished is thrown away, so its checkpoint is older than its last step.
        "window": last in story.inside_window and _newest(run) < last,
        "epoch": last in story.epoch_ends,
        "validation": last in story.validated and ("validation", last) not in new,
        "save": False,
    }
    return kind if fell_there[kind] else "train"
