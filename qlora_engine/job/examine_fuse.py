"""Examine the file of a job that fuses: which job it means, and whether that one has, or will have, what is fused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qlora_engine.job import fuse_spec, naming
from qlora_engine.job.errors import JobRejected, ModelRejected
from qlora_engine.job.folder import JOB_ID, Home, RunFolder, slug
from qlora_engine.job.formats import NewerFormat
from qlora_engine.job.fuse_spec import FuseSpec
from qlora_engine.job.jobfile import JobText
from qlora_engine.job.record import JobRecord
from qlora_engine.job.resolved import ResolvedFuse, ResolvedJob
from qlora_engine.job.states import State
from qlora_engine.job.targets import check_targets
from qlora_engine.job.unforeseen import said_by

ADAPTER_FILE = "adapters.safetensors"  # mlx_lm's name


def resolved(text: JobText, home: Home) -> ResolvedFuse:
    """Turn the content of such a file into a resolved job.

    Raises:
        JobRejected: there is no such job, it does not train, it has ended without adapters, or its model is gone.
    """
    try:
        return _resolved(fuse_spec.validate(text), home)
    except JobRejected as error:
        error.where = text.place_of(error.where or "")
        raise


def _resolved(spec: FuseSpec, home: Home) -> ResolvedFuse:
    check_targets(spec.notify, home.targets)
    source = _source(spec, home)
    run = home.run(source.id)
    _check_weights(spec, source, run)
    trained = _trained(run)
    if spec.add_as is not None and (home.models / spec.add_as).exists():
        raise JobRejected(
            f"A model named {spec.add_as} exists.", where=f"add_as: {spec.add_as}", remedy="Give another name."
        )
    return ResolvedFuse(spec=spec, source=source.id, model=trained.spec.model, model_path=_base(trained))


def _source(spec: FuseSpec, home: Home) -> JobRecord:
    """The record of the job that is meant; of thousands, only those are read that may be, if there are such."""
    wanted = (spec.fuse.lower(), slug(spec.fuse))
    ids = [path.name for path in home.runs.glob("*") if JOB_ID.fullmatch(path.name)]
    likely = [job_id for job_id in ids if any(one in job_id for one in wanted)]
    # A sweep's job may have a name that is not in its id, which holds only the beginning of the sweep's name.
    found = _records(home, likely) or [one for one in _records(home, ids) if one.name == spec.fuse]
    training = [record for record in found if record.kind == "train"]
    if not training and len(found) == 1:
        raise JobRejected(
            f"{found[0].id} is itself a job that fuses, so it has learned nothing.",
            where="fuse",
            remedy=f"Name the job that trained; its id is under `source` in {home.run(found[0].id).spec}.",
        )
    job_id, *more = naming.resolve("fuse", [spec.fuse], training)
    if more:
        raise JobRejected(
            f"`fuse` names {spec.fuse!r:.90}, a sweep of {1 + len(more)} jobs.",
            where="fuse",
            remedy="Name one of them: `qlora show` of the sweep shows them, the best first.",
        )
    return next(record for record in training if record.id == job_id)


def _records(home: Home, ids: Iterable[str]) -> list[JobRecord]:
    return [record for job_id in ids if (record := _record(home, job_id))]


def _record(home: Home, job_id: str) -> JobRecord | None:
    try:
        return JobRecord.load(home.run(job_id).state)
    except NewerFormat:
        raise
    except (OSError, ValueError):
        return None  # being removed, or damaged: `qlora ls` shows it, and nothing can be made of it


def _check_weights(spec: FuseSpec, source: JobRecord, run: RunFolder) -> None:
    if not source.is_final:
        return  # it will have them; where it ends without, the attempt says so
    if not (run.adapters / ADAPTER_FILE).exists():
        ended = {State.DONE: "is done", State.FAILED: "failed"}.get(source.state, "was cancelled")
        raise JobRejected(
            f"{source.id} {ended} and has no adapters to fuse.",
            where="fuse",
            remedy=f"`qlora retry {source.id}` trains it again."
            if source.state is not State.DONE
            else "Its adapters were removed; train it again.",
        )
    if spec.weights == "best" and not any(run.checkpoints.glob("step-*")):
        raise JobRejected(
            f"{source.id} has no checkpoints any more, so its best one is not known.",
            where="weights: best",
            remedy="Leave `weights` away: then the job's adapters are fused.",
        )


def _trained(run: RunFolder) -> ResolvedJob:
    try:
        return ResolvedJob.load(run.spec)
    except NewerFormat:
        raise
    except (OSError, ValueError) as error:
        raise JobRejected(
            f"What {run.id} was trained with cannot be read: {said_by(error)}.",
            where=str(run.spec),
            remedy="Restore the file, or train the job again.",
        ) from None


def _base(trained: ResolvedJob) -> str | None:
    """The base model's folder; None where the hub has it and this machine not yet."""
    path = trained.model_path
    if path is not None and not (Path(path) / "config.json").is_file():
        raise ModelRejected(
            f"The model that it was trained on is gone: {trained.spec.model}.",
            where=path,
            remedy="Put it back where it was: adapters mean nothing without their base.",
        )
    return path
