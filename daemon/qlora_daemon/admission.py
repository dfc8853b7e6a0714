"""Admission, the same for files and requests: claim, examine, then a run folder or a rejection.

The order makes a kill at any point harmless. Claimed: the submission lies in `.taking/`. Accepted: the run
folder appears by one rename, its record carries the claim's key, so a claim whose key has a run is never made
a job again. Then the source moves to `accepted/<job id>/`, the claim ends, and who asked is answered.
Verdicts that have come together are acted on together and share their syncs.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

from qlora_daemon import duplicates
from qlora_daemon.claims import (
    Claim,
    Problem,
    claim_found,
    claim_letter,
    claim_request,
    read_claim,
    settle_rejection,
    unfinished,
    was_rejected,
)
from qlora_daemon.jobs import JobTable
from qlora_daemon.mail import Examined
from qlora_daemon.settling import JOB_NAMES, Found, look
from qlora_engine.job import durable, naming
from qlora_engine.job.errors import JobRejected, QloradError
from qlora_engine.job.events import Event, EventLog, to_line
from qlora_engine.job.folder import Home, RunFolder, new_job_id, unfinished_run
from qlora_engine.job.fuse_spec import FuseSpec
from qlora_engine.job.record import JobRecord, utc_now
from qlora_engine.job.resolved import AnyResolved, ResolvedFuse, ResolvedJob, kind_of
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.states import State
from qlora_engine.job.survey import Survey
from qlora_engine.job.text import plain
from qlora_engine.job.together import sync_folders, write_new
from qlora_engine.job.turn import Standing, standing
from qlora_engine.job.when import moment_of
from qlora_worker import letters
from qlora_worker.messages import Answer, Submission
from qlora_worker.queue import Received

Reply = Callable[[Received, Answer], None]

BATCH = 256  # verdicts that are acted on together, at most
GATHER_SECONDS = 0.1  # that a verdict waits for others, while more are to come
AGAIN_SECONDS = 5.0  # until what the disk refused is tried again


@dataclass(frozen=True)
class Draft:
    """A job whose run folder is made but has not appeared yet."""

    claim: Claim
    record: JobRecord
    folder: Path
    events: list[Event]


class Admission:
    """What happens to a submission, in the owner's thread.

    Args:
        home: where everything lies.
        jobs: the table that accepted jobs enter.
        examine: hands a claim to the examiner.
        reply: answers a request.
        log: the service log.
        rejected: is told that there is one more in `rejected/`.
    """

    def __init__(
        self,
        home: Home,
        jobs: JobTable,
        *,
        examine: Callable[[Claim], None],
        reply: Reply,
        log: EventLog,
        rejected: Callable[[], None] = lambda: None,
    ) -> None:
        self._home, self._jobs, self._log = home, jobs, log
        self._examine, self._reply, self._rejected = examine, reply, rejected
        self._open: dict[str, Claim] = {}
        self._asked: dict[str, list[Received]] = {}
        self._verdicts: list[Examined] = []
        self._not_before = 0.0

    def resume(self) -> None:
        """Go on with what an earlier daemon left, and queue what it had accepted."""
        for temporary in self._home.runs.glob(".tmp-*"):
            shutil.rmtree(temporary)  # a run folder that was never renamed into place
        for path in unfinished(self._home):
            try:
                self._resume_claim(read_claim(path))
            except (OSError, ValueError) as error:  # one that cannot be finished now must not keep the daemon down
                self._say_trouble(f"finishing {path}", error)
        for job in self._jobs:
            if job.state is State.ACCEPTED:
                stands = standing(job, self._jobs.get)
                self._jobs.move(job.id, stands.state, stands.reason)

    def _resume_claim(self, claim: Claim) -> None:
        if job := self._jobs.of_request(claim.key):
            self._hand_back([(claim, job.id)])
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
        if problem is None and letters.is_letter(found.name):
            try:
                self._take_letter(found.path)
            except JobRejected as error:
                problem = error
            else:
                return
        claim = claim_found(self._home, found, problem)
        self._log.emit("file.taken", path=str(found.path))
        self._begin(claim)

    def _take_letter(self, path: Path) -> None:
        """Take a submission that a client left here, unless its request has come, too."""
        letter = letters.read(path)
        self._log.emit("file.taken", path=str(path))
        if letter.key in self._open or self._jobs.of_request(letter.key):
            path.unlink()
        else:
            self._begin(claim_letter(self._home, letter.key, letter.submission, path))

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

    def examined(self, key: str, verdict: AnyResolved | QloradError, survey: Survey | None = None) -> None:
        """Note the examiner's verdict on a claim, for `settle`."""
        if not self._verdicts:
            self._not_before = time.monotonic() + GATHER_SECONDS
        self._verdicts.append(Examined(key, verdict, survey))
        if len(self._verdicts) >= min(BATCH, len(self._open)):
            self._not_before = 0.0  # nothing more to wait for

    def settle(self) -> None:
        """Act on the verdicts that have come; those that the disk refuses are tried again later."""
        refused: list[Examined] = []
        while self._verdicts and time.monotonic() >= self._not_before:
            batch, self._verdicts = self._verdicts[:BATCH], self._verdicts[BATCH:]
            try:
                self._settle(batch)
            except Exception:  # noqa: BLE001  # each alone, so that one which is refused does not take the others along
                for verdict in batch:
                    if verdict.key in self._open and not self._settle_alone(verdict):
                        refused.append(verdict)
        if refused:
            self._verdicts = [*refused, *self._verdicts]
            self._not_before = time.monotonic() + AGAIN_SECONDS

    @property
    def seconds_until_due(self) -> float:
        """Until `settle` has something to do; infinite when it has not."""
        return max(0.0, self._not_before - time.monotonic()) if self._verdicts else float("inf")

    def _settle_alone(self, verdict: Examined) -> bool:
        try:
            self._settle([verdict])
        except OSError as error:
            self._say_trouble(f"admitting {self._open[verdict.key].name}", error)
            return False
        except Exception as error:  # noqa: BLE001  # a bug: it would be the same the next time
            claim = self._open[verdict.key]
            self._say_trouble(f"admitting {claim.name}", error)
            self._close(claim, Answer.refused(QloradError(f"The daemon cannot take {claim.name}: a bug in it.")))
        return True

    def _settle(self, batch: Sequence[Examined]) -> None:
        drafts: list[Draft] = []
        drafted: dict[str, JobRecord] = {}
        alike: dict[str, JobRecord] = {}  # the same, by content
        try:
            for examined in batch:
                claim, verdict = self._open[examined.key], examined.verdict
                if isinstance(verdict, QloradError):
                    self._reject(claim, verdict)
                elif draft := self._draft(claim, verdict, examined.survey, alike, drafted):
                    drafts.append(draft)
                    drafted[draft.record.id] = alike[draft.record.content or draft.record.id] = draft.record
            sync_folders([draft.folder for draft in drafts])
        except Exception:
            for draft in drafts:
                if not self._jobs.get(draft.record.id):
                    shutil.rmtree(draft.folder, ignore_errors=True)
            raise
        self._accept(drafts)

    def _draft(
        self,
        claim: Claim,
        job: AnyResolved,
        survey: Survey | None,
        alike: Mapping[str, JobRecord],
        drafted: Mapping[str, JobRecord],
    ) -> Draft | None:
        """The job's run folder under a name that is not its own yet; nothing where a job is the same."""
        if record := self._jobs.of_request(claim.key):  # it had appeared when the disk refused what comes after that
            return Draft(claim, record, self._home.run(record.id).path, _first_events(claim, record, job, survey))
        text = claim.content()
        content = duplicates.content_of(text, job, claim.overrides)
        same = alike.get(content) or self._jobs.unfinished_like(content)
        if same is not None and not claim.again:
            self._reject(claim, duplicates.refused(claim, same))
            return None
        try:
            after = self._waits_for(job, drafted)
        except JobRejected as error:
            self._reject(claim, error)
            return None
        name = plain(job.spec.name or _name_of(claim), 80) or "job"
        job_id = new_job_id(name, utc_now(), self._home.runs)
        record = JobRecord.new(job_id, name, kind=kind_of(job), request=claim.key, content=content).noting(
            **_wishes(job.spec), after=after
        )
        stands = standing(record, lambda other: self._jobs.get(other) or drafted.get(other))
        if job.spec.hold:
            stands = Standing(State.HELD, "held from the start · `qlora release` lets it go on")
        record = record.moved(stands.state, stands.reason)
        folder = unfinished_run(self._home.runs, job_id)
        draft = Draft(claim, record, folder, _first_events(claim, record, job, survey))
        if claim.text is None and isinstance(job, ResolvedJob):
            job = rebase(job, claim.source.resolve(), (self._home.accepted / job_id).resolve())
        try:
            _fill(RunFolder(folder), draft, job, text)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return draft

    def _waits_for(self, job: AnyResolved, drafted: Mapping[str, JobRecord]) -> tuple[str, ...]:
        """The jobs that it comes after: those that it names, and the one that it fuses unless that has ended."""
        after: tuple[str, ...] = ()
        if job.spec.after:
            after = naming.resolve("after", job.spec.after, [*self._jobs, *drafted.values()])
        if isinstance(job, ResolvedFuse) and job.source not in after:
            source = self._jobs.get(job.source)
            if source is None or not source.is_final:
                after = (*after, job.source)
        return after

    def _accept(self, drafts: Sequence[Draft]) -> None:
        """Let the run folders appear, then tell everybody, and end the claims."""
        for draft in drafts:
            draft.folder.rename(self._home.run(draft.record.id).path)
            self._jobs.add(draft.record)
        if drafts:
            durable.sync_folder(self._home.runs)
        for draft in drafts:
            for event in draft.events:  # the job's own file holds them already
                self._jobs.relay(event)
        try:
            self._hand_back([(draft.claim, draft.record.id) for draft in drafts])
        except OSError as error:  # the jobs are safe; the claims are ended at the next start
            self._say_trouble("ending claims", error)
        for draft in drafts:
            self._close(draft.claim, Answer.done(draft.record.id, "accepted"))

    def _hand_back(self, done: Sequence[tuple[Claim, str]]) -> None:
        """Put what was dropped where the user finds it, and end the claims."""
        dropped = [(claim, job_id) for claim, job_id in done if claim.text is None]
        if dropped:
            self._home.accepted.mkdir(parents=True, exist_ok=True)
        for claim, job_id in dropped:
            if claim.source.exists():
                claim.source.rename(self._home.accepted / job_id)
        if dropped:
            durable.sync_folder(self._home.accepted)
        for claim, _ in dropped:
            claim.drop(sync=False)  # one that comes back with the power finds its job

    def _begin(self, claim: Claim) -> None:
        self._open[claim.key] = claim
        if claim.problem is not None:
            self._reject(claim, claim.problem.as_error())
        else:
            self._examine(claim)

    def _reject(self, claim: Claim, error: QloradError) -> None:
        if claim.kind == "request":
            claim.drop(sync=False)  # whoever asked has the file, and is told
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
        self._rejected()

    def _say_trouble(self, doing: str, error: Exception) -> None:
        self._log.emit("internal.error", doing=doing, error=f"{type(error).__name__}: {error}")

    def _close(self, claim: Claim, answer: Answer) -> None:
        del self._open[claim.key]
        for received in self._asked.pop(claim.key, []):
            self._reply(received, answer)


def _wishes(spec: JobSpec | FuseSpec) -> dict[str, Any]:
    """What the job says about its turn."""
    return {
        "priority": spec.priority,
        "urgent": spec.urgent,
        "power": spec.power,
        "not_before": moment_of(spec.not_before) if spec.not_before else None,
        "retries": spec.retries,
        "max_runtime": spec.max_runtime,
    }


def _first_events(claim: Claim, record: JobRecord, job: AnyResolved, survey: Survey | None) -> list[Event]:
    """What is said of a job when it appears."""
    events: list[Event] = []
    log = EventLog([events.append], job=record.id)
    log.emit("job.accepted", name=record.name, model=_model_of(job), source=claim.name)
    if survey is not None:
        log.emit("job.examined", **survey.as_event())
    log.emit("job.state", **{"from": State.ACCEPTED, "to": record.state, "reason": record.reason})
    return events


def _model_of(job: AnyResolved) -> str:
    return job.model if isinstance(job, ResolvedFuse) else job.spec.model


def _fill(run: RunFolder, draft: Draft, job: AnyResolved, text: bytes) -> None:
    """Write a run folder that nobody sees before it is whole, so that each file is written but once."""
    run.path.mkdir()
    suffix = draft.claim.job_file.suffix.lower()
    write_new(run.path / f"job{'.yaml' if suffix == '.yml' else suffix}", text)
    write_new(run.spec, _as_json(job))
    write_new(run.state, _as_json(draft.record))
    write_new(run.events, "".join(f"{to_line(event)}\n" for event in draft.events).encode())


def _as_json(model: BaseModel) -> bytes:
    """As `durable.write_json` writes it, in a tenth of the time."""
    return to_json(model.model_dump(mode="json"), indent=2, inf_nan_mode="constants") + b"\n"


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
