"""One run, as one story: load, read the data, go on from the newest checkpoint, train, leave the result."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import maybe_set_recommended_wired_limit

from qlora_engine.job.datafiles import SPLITS, Split, digest
from qlora_engine.job.errors import CheckpointDamaged, DataRejected, ResumeRefused
from qlora_engine.job.events import EventLog
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.training import checkpoint, runtime
from qlora_engine.training.adapters import save_adapters, start_from
from qlora_engine.training.batches import Plan
from qlora_engine.training.data import Document, read_documents
from qlora_engine.training.dropout import DropoutKey
from qlora_engine.training.hub_data import read_hub_documents
from qlora_engine.training.loop import GIGA, Loop
from qlora_engine.training.model import Base, activation_type, add_adapters, count_parameters, load_base
from qlora_engine.training.optimizer import build_optimizer
from qlora_engine.training.progress import Progress
from qlora_engine.training.runtime import Runtime
from qlora_engine.training.step import TrainingStep
from qlora_engine.training.stop import StopRequest

# Keys that may differ between a checkpoint and the job that resumes it: they change nothing that is trained.
FREE_KEYS = frozenset({"name", "priority", "project_name", "adapter_path", "config", "steps_per_report"})
Documents = dict[Split, list[Document]]


class Outcome(StrEnum):
    """How training ended."""

    DONE = "done"
    STOPPED = "stopped"  # at a checkpoint, by request


def train(job: ResolvedJob, run: RunFolder, *, log: EventLog, metrics: EventLog, stop: StopRequest) -> Outcome:
    """Train a job to its end or to the checkpoint where it was asked to stop.

    Args:
        job: as admitted.
        run: an existing folder; its newest whole checkpoint is gone on from.
        log, metrics: receive the events; `metrics` those of every micro-batch.
        stop: already watching.

    Raises:
        QloradError: it cannot be trained; with the remedy.
    """
    started = time.perf_counter()
    with stop.nothing_to_lose():
        found = runtime.settle(run, log)
        _say_started(found, log)
        maybe_set_recommended_wired_limit()
        dropout = DropoutKey()
        with phase("load", log):
            base = load_base(job)
            add_adapters(base, job.spec, dropout)
            _say_loaded(job, base, log)
        with phase("data", log):
            documents = read_data(job, base)
            plan = plan_of(job, documents)
            _say_data(job, documents, plan, log)
        step = TrainingStep(
            base.model,
            build_optimizer(job.spec),
            activations=activation_type(base.model),
            dropout=dropout,
            grad_clip=job.spec.grad_clip,
            compiled=found.compiled,
        )
        progress = begin(job, run, step, log)
    base.model.train()

    def save(at: Progress) -> None:
        save_checkpoint(job, run, step, at, log)

    loop = Loop(job.spec, plan, documents, step, save, log, metrics, stop)
    with phase("train", log):
        progress = loop.run(progress)
    if not loop.complete(progress):
        log.emit("training.stopped", step=progress.step)
        return Outcome.STOPPED
    if job.spec.test:
        with phase("test", log):
            if loop.evaluate("test", job.spec.test_batches, progress.step) is None:
                log.emit("training.stopped", step=progress.step)
                return Outcome.STOPPED
    adapters = save_adapters(run.adapters, step.masters, job)
    log.emit(
        "training.done",
        step=progress.step,
        seconds=round(time.perf_counter() - started, 1),
        tokens=progress.tokens,
        loss_before=progress.loss_before,
        loss_after=progress.loss_last,
        adapters=str(adapters),
    )
    return Outcome.DONE


@contextmanager
def phase(name: str, log: EventLog) -> Iterator[None]:
    """Say when a phase begins and ends."""
    log.emit("phase.started", phase=name)
    started = time.perf_counter()
    yield
    log.emit("phase.ended", phase=name, seconds=round(time.perf_counter() - started, 3))


def read_data(job: ResolvedJob, base: Base) -> Documents:
    """Tokenize the job's data.

    Raises:
        DataRejected: a file changed since the job was accepted, or a row cannot be tokenized.
    """
    if not job.data:
        return read_hub_documents(job.spec, base.tokenizer)
    wanted = [split for split in SPLITS if split in job.data and (split != "test" or job.spec.test)]
    documents: Documents = {}
    for split in wanted:
        file = job.data[split]
        if digest(Path(file.path)) != file.sha256:
            raise DataRejected(
                f"{Path(file.path).name} is not what it was when the job was accepted.",
                where=file.path,
                remedy="Put the old content back, or submit the job again to train on the new one.",
            )
        documents[split] = read_documents(Path(file.path), file.format, job.spec, base.tokenizer)
    return documents


def plan_of(job: ResolvedJob, documents: Mapping[Split, list[Document]]) -> Plan:
    """The order of the run's rows.

    Raises:
        DataRejected: no training row has a target.
    """
    if not any(document.targets for document in documents["train"]):
        raise DataRejected(
            "No training row has anything to learn.",
            where=job.data["train"].path if job.data else job.spec.data,
            remedy="With `mask_prompt`, every prompt fills max_seq_length or no turn is an assistant's: "
            "raise max_seq_length or check the roles.",
        )
    spec = job.spec
    return Plan.of(
        documents["train"],
        batch_size=spec.batch_size,
        accumulation=spec.grad_accumulation_steps,
        seed=spec.seed,
        iters=spec.iters,
        epochs=spec.epochs,
    )


def begin(job: ResolvedJob, run: RunFolder, step: TrainingStep, log: EventLog) -> Progress:
    """Go on from the newest whole checkpoint, or start.

    Raises:
        ResumeRefused: the checkpoint was made by another job or from other data.
    """

    def say_damaged(path: Path, error: CheckpointDamaged) -> None:
        log.emit("checkpoint.damaged", path=str(path), what=error.what)

    checkpoint.tidy(run.checkpoints)
    newest = checkpoint.newest(run.checkpoints, say_damaged)
    if newest is None:
        if job.resume_adapter_file:
            start_from(Path(job.resume_adapter_file), step)
        return Progress()
    found, trainer = newest
    changed = changes(trainer["fingerprint"], fingerprint(job))
    if changed:
        raise ResumeRefused(
            f"The checkpoint at step {found.step} was made with other settings or data: {', '.join(changed)}.",
            where=str(found.path),
            remedy="Put them back to go on, or submit the job anew to start over.",
        )
    step.restore(checkpoint.load_arrays(found.path))
    log.emit("training.resumed", step=found.step, path=str(found.path))
    return Progress(**trainer["progress"])


def save_checkpoint(job: ResolvedJob, run: RunFolder, step: TrainingStep, progress: Progress, log: EventLog) -> None:
    """Write a checkpoint and the adapters as they are now; drop old checkpoints."""
    started = time.perf_counter()
    trainer = {"progress": progress.as_json(), "fingerprint": fingerprint(job)}
    saved = checkpoint.save(run.checkpoints, progress.step, step.state(), trainer)
    save_adapters(run.adapters, step.masters, job)
    checkpoint.prune(run.checkpoints, progress.best_step)
    log.emit(
        "checkpoint.saved",
        step=saved.step,
        path=str(saved.path),
        bytes=sum(file.stat().st_size for file in saved.path.iterdir()),
        seconds=round(time.perf_counter() - started, 3),
    )


def fingerprint(job: ResolvedJob) -> dict[str, Any]:
    """What a checkpoint must agree with: the settings that shape training, and the hashes of the data."""
    spec = {key: value for key, value in job.spec.model_dump(mode="json").items() if key not in FREE_KEYS}
    data = {f"data.{split}": file.sha256 for split, file in job.data.items() if split != "test"}
    return spec | data


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys in which two fingerprints differ."""
    return sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))


def _say_started(found: Runtime, log: EventLog) -> None:
    used = found.blas or {}
    log.emit(
        "training.started",
        pid=os.getpid(),
        backend=found.backend,
        device=found.device,
        versions=found.versions,
        blas=used.get("library"),
        threads=used.get("threads"),
    )


def _say_loaded(job: ResolvedJob, base: Base, log: EventLog) -> None:
    total, trainable = count_parameters(base.model)
    log.emit(
        "model.loaded",
        model=job.model_path or job.spec.model,
        model_type=base.config.get("model_type"),
        bits=base.bits,
        quantized_on_load=base.quantized_on_load,
        dequantized=base.dequantized,
        parameters=total,
        trainable=trainable,
        memory_gb=round(mx.get_active_memory() / GIGA, 3),
    )


def _say_data(job: ResolvedJob, documents: Documents, plan: Plan, log: EventLog) -> None:
    rows = documents["train"]
    kept, cut = sum(map(len, rows)), sum(document.cut for document in rows)
    log.emit(
        "data.loaded",
        format=job.data["train"].format if job.data else "hub",
        **{split: len(documents.get(split, ())) for split in SPLITS},
        tokens=kept,
        supervised=sum(document.targets for document in rows),
        truncated=sum(document.cut > 0 for document in rows),
        lost_share=round(cut / (kept + cut), 4) if cut else 0.0,
        nothing_to_learn=sum(document.targets == 0 for document in rows),
        steps=plan.steps,
        updates=plan.updates,
    )
