"""Admission, the same for files and requests: claim, examine, then a run folder or a rejection.

The order makes a kill at any point harmless. Claimed: the submission lies in `.taking/`. Accepted: the run
folder appears by one rename, its record carries the claim's key, so a claim whose key has a run is never made
a job again. Then the source moves to `accepted/<job id>/`, the claim ends, and the job is queued.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from qlora_daemon.claims import (
    Claim,
    Problem,
    claim_found,
    claim_request,
    settle_rejection,
    unfinished,
    was_rejected,
)
from qlora_daemon.jobs import JobTable
from qlora_daemon.settling import JOB_NAMES, Found, look
from qlora_engine.job import durable
from qlora_engine.job.errors import QloradError
from qlora_engine.job.events import EventLog
from qlora_engine.job.folder import Home, RunFolder, new_job_id
from qlora_engine.job.record import JobRecord, utc_now
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.states import State
from qlora_engine.job.survey import Survey
from qlora_worker.messages import Answer, Submission
from qlora_worker.queue import Received

Reply = Callable[[Received, Answer], None]


class Admission:
    """What happens to a submission, in the owner's thread.

    Args:
        home: where everything lies.
        jobs: the table that accepted jobs enter.
        examine: hands a claim to the examiner.
        reply: answers a request.
        log: the service log.
    """

    def __init__(
        self, home: Home, jobs: JobTable, *, examine: Callable[[Claim], None], reply: Reply, log: EventLog
    ) -> None:
        self._home, self._jobs, self._log = home, jobs, log
        self._examine, self._reply = examine, reply
        self._open: dict[str, Claim] = {}
        self._asked: dict[str, list[Received]] = {}

    def resume(self) -> None:
        """Go on with what an earlier daemon left, and queue what it had accepted."""
        for temporary in self._home.runs.glob(".tmp-*"):
            shutil.rmtree(temporary)  # a run folder that was never renamed into place
        for claim in unfinished(self._home):
            try:
                self._resume_claim(claim)
            except OSError as error:  # one that cannot be finished now must not keep the daemon from its start
                problem = f"{type(error).__name__}: {error}"
                self._log.emit("internal.error", doing=f"finishing {claim.path}", error=problem)
        for job in self._jobs:
            if job.state is State.ACCEPTED:
                self._jobs.move(job.id, State.QUEUED)

    def _resume_claim(self, claim: Claim) -> None:
        if job := self._jobs.of_request(claim.key):
            self._hand_back(claim, job.id)
        elif was_rejected(claim):
            self._settle_rejection(claim, None)
        elif not claim.dropped.is_symlink() and not claim.dropped.exists():
            claim.drop()  # the claim was made, but nothing had been moved into it
        else:
            self._begin(claim)

    def take(self, found: Found, problem: QloradError | None) -> None:
        """Claim something that has settled in the watched folder."""
        if look(found.path) != found:
            return  # it has changed since; the inbox will notice and wait again
        claim = claim_found(self._home, found, problem)
        self._log.emit("file.taken", path=str(found.path))
        self._begin(claim)

    def submit(self, received: Received, submission: Submission) -> None:
        """Take a submission that came as a request; asked again, it is the same submission."""
        if job := self._jobs.of_request(received.key):
            self._reply(received, Answer.done(job.id, "accepted"))
            return
        asked = self._asked.setdefault(received.key, [])
        if received not in asked:
            asked.append(received)
        if received.key not in self._open:
            self._begin(claim_request(self._home, received.key, submission))

    def examined(self, key: str, verdict: ResolvedJob | QloradError, survey: Survey | None = None) -> None:
        """Act on the examiner's verdict, and say what it found out."""
        claim = self._open[key]
        if isinstance(verdict, QloradError):
            self._reject(claim, verdict)
        else:
            self._accept(claim, verdict, survey)

    def _begin(self, claim: Claim) -> None:
        self._open[claim.key] = claim
        if claim.problem is not None:
            self._reject(claim, claim.problem.as_error())
        else:
            self._examine(claim)

    def _accept(self, claim: Claim, job: ResolvedJob, survey: Survey | None) -> None:
        name = job.spec.name or _name_of(claim)
        job_id = new_job_id(name, utc_now(), self._home.runs)
        record = JobRecord.new(job_id, name, priority=job.spec.priority, request=claim.key)
        accepted = self._home.accepted / job_id
        self._make_run(record, rebase(job, claim.source.resolve(), accepted.resolve()), claim.job_file)
        self._jobs.add(record)
        log = self._jobs.log(record)
        log.emit("job.accepted", name=name, model=job.spec.model, source=claim.name)
        if survey is not None:
            log.emit("job.examined", **survey.as_event())
        self._hand_back(claim, job_id)
        self._jobs.move(job_id, State.QUEUED)
        self._close(claim, Answer.done(job_id, "accepted"))

    def _make_run(self, record: JobRecord, job: ResolvedJob, job_file: Path) -> None:
        """The run folder, complete or not there."""
        temporary = RunFolder(self._home.runs / f".tmp-{record.id}")
        temporary.path.mkdir()
        suffix = job_file.suffix.lower()
        copy = temporary.path / f"job{'.yaml' if suffix == '.yml' else suffix}"
        durable.write_bytes(copy, job_file.read_bytes())
        job.store(temporary.spec)
        record.store(temporary.state)
        durable.move(temporary.path, self._home.run(record.id).path)

    def _hand_back(self, claim: Claim, job_id: str) -> None:
        """Put what was dropped where the user finds it, and end the claim."""
        accepted = self._home.accepted / job_id
        if claim.source.exists():
            self._home.accepted.mkdir(parents=True, exist_ok=True)
            durable.move(claim.source, accepted)
        claim.drop()

    def _reject(self, claim: Claim, error: QloradError) -> None:
        if claim.kind == "request":
            claim.drop()  # whoever asked has the file, and is told
        else:
            self._settle_rejection(claim, Problem.of(error))
        self._close(claim, Answer.refused(error))

    def _settle_rejection(self, claim: Claim, problem: Problem | None) -> None:
        self._home.rejected.mkdir(parents=True, exist_ok=True)
        target, problem = settle_rejection(claim, self._home.rejected, problem)
        self._log.emit(
            "file.rejected",
            path=str(self._home.jobs / claim.name),
            what=problem.what,
            where=problem.where,
            remedy=problem.remedy,
            moved_to=str(target),
        )

    def _close(self, claim: Claim, answer: Answer) -> None:
        del self._open[claim.key]
        for received in self._asked.pop(claim.key, []):
            self._reply(received, answer)


def _name_of(claim: Claim) -> str:
    """What to call a job whose file does not say: its folder where the file is just called job.yaml."""
    if claim.kind == "folder":
        return claim.name
    stem = Path(claim.name).stem
    return Path(claim.base).name or stem if claim.base and claim.name in JOB_NAMES else stem


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
