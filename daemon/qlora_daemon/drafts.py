"""What a submission becomes, made on disk before it appears: a run folder, or those of a sweep, which appear together.

A run folder appears by one rename. Those of a sweep lie in one folder, whose rename accepts all of them; then each
moves to its place, and a start after a kill goes on with that.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

from qlora_daemon.claims import Claim
from qlora_daemon.settling import JOB_NAMES
from qlora_engine.job import durable
from qlora_engine.job.events import Event, EventLog, to_line
from qlora_engine.job.folder import APPEARING, Home, RunFolder, appearing_group, unfinished_run
from qlora_engine.job.members import ResolvedSweep
from qlora_engine.job.record import JobRecord
from qlora_engine.job.resolved import AnyResolved, AnySpec, ResolvedFuse, ResolvedJob
from qlora_engine.job.states import State
from qlora_engine.job.survey import Survey
from qlora_engine.job.sweep import Settings, label
from qlora_engine.job.text import plain
from qlora_engine.job.together import write_new
from qlora_engine.job.when import moment_of


@dataclass(frozen=True)
class Part:
    """One job of a submission, as it was examined; `settings` is what it has of its own in a sweep."""

    job: AnyResolved
    survey: Survey | None = None
    settings: Settings = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What it is called beside its sweep's name."""
        return label(self.settings)


@dataclass(frozen=True)
class Draft:
    """A submission whose run folders are made but have not appeared yet.

    Attributes:
        id: of the job, or of the sweep.
        records, events: of each job, and what is said of it when it appears.
        folder: the run folder under another name, or the folder that holds those of the sweep.
    """

    claim: Claim
    id: str
    records: tuple[JobRecord, ...]
    events: tuple[Sequence[Event], ...]
    folder: Path

    @property
    def is_sweep(self) -> bool:
        """Its jobs are a group, be it of one."""
        return self.records[0].group is not None

    def folders(self) -> Iterator[Path]:
        """Every folder with files that must be on the disk, the outer one last."""
        if self.is_sweep:
            yield from (self.folder / record.id for record in self.records)
        yield self.folder

    def commit(self, runs: Path) -> None:
        """Accept it: from here on its jobs are there, or will be after the next start."""
        self.folder.rename(appearing_group(runs, self.id) if self.is_sweep else runs / self.id)

    def place(self, runs: Path) -> None:
        """Have the run folders of a sweep in their places; done twice, it goes on where it was."""
        if self.is_sweep and (group := appearing_group(runs, self.id)).exists():
            durable.sync_folder(runs)  # whoever finds one of them must find all
            _move_out(group, runs)


def parts_of(verdict: AnyResolved | ResolvedSweep, survey: Survey | None) -> list[Part]:
    """The jobs of a submission that was examined."""
    if not isinstance(verdict, ResolvedSweep):
        return [Part(verdict, survey)]
    return [Part(member.job, member.survey, member.settings) for member in verdict.members]


def make(home: Home, claim: Claim, job_id: str, parts: Sequence[Part], records: Sequence[JobRecord]) -> Draft:
    """Write the run folders of a submission, which nobody sees yet.

    Args:
        home: where they will appear.
        claim: the submission.
        job_id: of the job, or of the sweep.
        parts, records: of each job.

    Raises:
        OSError: the disk refuses; nothing is left.
    """
    folder = unfinished_run(home.runs, job_id)
    events = [_first_events(claim, record, part) for record, part in zip(records, parts, strict=True)]
    draft = Draft(claim, job_id, tuple(records), tuple(events), folder)
    text, suffix = claim.content(), claim.job_file.suffix.lower()
    moved = _rebase_from(claim, home.accepted / job_id)
    try:
        if draft.is_sweep:
            folder.mkdir()
        for run, record, part, said in zip(draft.folders(), records, parts, events, strict=False):
            run.mkdir()
            _fill(RunFolder(run), moved(part.job), record, said)
            write_new(run / f"job{'.yaml' if suffix == '.yml' else suffix}", text)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return draft


def unfinished_groups(home: Home) -> Iterator[str]:
    """Have the sweeps in their places that were accepted before a kill; yields the ids of jobs that were not there."""
    for group in home.runs.glob(f"{APPEARING}*"):
        yield from _move_out(group, home.runs)


def _move_out(group: Path, runs: Path) -> list[str]:
    names = sorted(path.name for path in group.iterdir())
    for name in names:
        (group / name).rename(runs / name)
    durable.sync_folder(runs)
    group.rmdir()
    return names


def wishes(spec: AnySpec) -> dict[str, Any]:
    """What a job says about its turn."""
    return {
        "priority": spec.priority,
        "urgent": spec.urgent,
        "power": spec.power,
        "not_before": moment_of(spec.not_before) if spec.not_before else None,
        "retries": spec.retries,
        "max_runtime": spec.max_runtime,
    }


def name_of(claim: Claim, spec: AnySpec) -> str:
    """What to call a job; where its file does not say: its folder if the file is just called job.yaml."""
    return plain(spec.name or _file_name(claim), 80) or "job"


def _file_name(claim: Claim) -> str:
    if claim.kind == "folder":
        return claim.name
    stem = Path(claim.name).stem
    return Path(claim.base).name or stem if claim.base and claim.name in JOB_NAMES else stem


def _first_events(claim: Claim, record: JobRecord, part: Part) -> list[Event]:
    """What is said of a job when it appears."""
    events: list[Event] = []
    log = EventLog([events.append], job=record.id)
    log.emit("job.accepted", name=record.name, model=_model_of(part.job), source=claim.name, group=record.group)
    if part.survey is not None:
        log.emit("job.examined", **part.survey.as_event())
    log.emit("job.state", **{"from": State.ACCEPTED, "to": record.state, "reason": record.reason})
    return events


def _model_of(job: AnyResolved) -> str:
    return job.model if isinstance(job, ResolvedFuse) else job.spec.model


def _fill(run: RunFolder, job: AnyResolved, record: JobRecord, events: Sequence[Event]) -> None:
    """Write a run folder that nobody sees before it is whole, so that each file is written but once."""
    write_new(run.spec, _as_json(job))
    write_new(run.state, _as_json(record))
    write_new(run.events, "".join(f"{to_line(event)}\n" for event in events).encode())


def _as_json(model: BaseModel) -> bytes:
    """As `durable.write_json` writes it, in a tenth of the time."""
    return to_json(model.model_dump(mode="json"), indent=2, inf_nan_mode="constants") + b"\n"


def _rebase_from(claim: Claim, accepted: Path) -> Callable[[AnyResolved], AnyResolved]:
    """Where what was dropped will lie."""
    if claim.text is not None:
        return lambda job: job
    old, new = claim.source.resolve(), accepted.resolve()
    return lambda job: rebase(job, old, new) if isinstance(job, ResolvedJob) else job


def rebase(job: ResolvedJob, old: Path, new: Path) -> ResolvedJob:
    """The job with every path below `old` where it will be below `new`."""

    def moved(path: str) -> str:
        there = Path(path)
        return str(new / there.relative_to(old)) if there.is_relative_to(old) else path

    return job.model_copy(
        update={
            "model_path": moved(job.model_path) if job.model_path else None,
            "resume_adapter_file": moved(job.resume_adapter_file) if job.resume_adapter_file else None,
            "data": {split: file.model_copy(update={"path": moved(file.path)}) for split, file in job.data.items()},
        }
    )
