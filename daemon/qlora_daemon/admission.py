"""Admission, the same for files and requests: claim, examine, then a run folder or a rejection.

The order makes a kill at any point harmless. Claimed: the submission lies in `.taking/`. Accepted: the run folder, or
the folder with those of a sweep, appears by one rename. Each record carries the claim's key, so a claim whose key has a
run is never made a job again. Then the source moves to `accepted/<id>/`, the claim ends, and who asked is answered.
Verdicts that have come together are acted on together and share their syncs.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from qlora_daemon.batch import Batch
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
from qlora_daemon.drafts import Draft, unfinished_groups
from qlora_daemon.jobs import JobTable
from qlora_daemon.mail import Examined
from qlora_daemon.settling import Found, look
from qlora_engine.job import durable
from qlora_engine.job.errors import JobRejected, QloradError
from qlora_engine.job.events import EventLog
from qlora_engine.job.folder import Home
from qlora_engine.job.members import ResolvedSweep
from qlora_engine.job.resolved import AnyResolved
from qlora_engine.job.states import State
from qlora_engine.job.survey import Survey
from qlora_engine.job.together import sync_folders
from qlora_engine.job.turn import standing
from qlora_worker import letters
from qlora_worker.messages import Answer, Submission
from qlora_worker.requests import Received

Reply = Callable[[Received, Answer], None]

BATCH = 256  # verdicts that are acted on together, at most
GATHER_SECONDS = 0.1  # that a verdict waits for others, while more are to come
AGAIN_SECONDS = 5.0  # until what the disk refused is tried again


# For what `internal.error` tells of.
BUG_REMEDY = "`qlora logs --event internal.error` says more: please report it with that."


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
        self._appeared: dict[str, Draft] = {}  # of claims that are still open
        self._asked: dict[str, list[Received]] = {}
        self._verdicts: list[Examined] = []
        self._refused: dict[str, str] = {}  # open claims that cannot be settled now, and why
        self._not_before = 0.0

    def resume(self) -> None:
        """Go on with what an earlier daemon left, and queue what it had accepted."""
        for temporary in self._home.runs.glob(".tmp-*"):
            shutil.rmtree(temporary)  # a run folder that was never renamed into place
        try:
            for job_id in unfinished_groups(self._home):
                if self._jobs.get(job_id) is None:
                    self._jobs.read(job_id)
        except (OSError, ValueError) as error:
            self._say_trouble("finishing sweeps", error)
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
            self._hand_back([(claim, job.submitted_as)])
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
            self._reply(received, Answer.done(job.submitted_as, "accepted"))
            return
        asked = self._asked.setdefault(received.key, [])
        if received not in asked:
            asked.append(received)
        if received.key not in self._open:
            self._begin(claim_request(self._home, received.key, submission))

    def examined(
        self, key: str, verdict: AnyResolved | ResolvedSweep | QloradError, survey: Survey | None = None
    ) -> None:
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
            if self._refused.get(verdict.key) != str(error):  # said once, for it may be refused all night
                self._refused[verdict.key] = str(error)
                self._say_trouble(f"admitting {self._open[verdict.key].name}", error)
            return False
        except Exception as error:  # noqa: BLE001  # a bug: it would be the same the next time
            claim = self._open[verdict.key]
            self._say_trouble(f"admitting {claim.name}", error)
            what = f"The daemon cannot take {claim.name}: a bug in it."
            self._close(claim, Answer.refused(QloradError(what, remedy=BUG_REMEDY)))
        return True

    def _settle(self, batch: Sequence[Examined]) -> None:
        found = Batch(self._home, self._jobs)
        try:
            for examined in batch:
                if (draft := self._draft(examined, found)) is not None:
                    found.add(draft)
            sync_folders([folder for draft in found.drafts for folder in draft.folders() if folder.exists()])
        except Exception:
            for draft in found.drafts:
                if draft.claim.key not in self._appeared:
                    shutil.rmtree(draft.folder, ignore_errors=True)
            raise
        self._accept(found.drafts)

    def _draft(self, examined: Examined, batch: Batch) -> Draft | None:
        """What a submission becomes; nothing where it is rejected, which then has been said."""
        claim, verdict = self._open[examined.key], examined.verdict
        if draft := self._appeared.get(claim.key):  # the disk refused what comes after that
            return draft
        if isinstance(verdict, QloradError):
            self._reject(claim, verdict)
            return None
        try:
            return batch.draft(claim, verdict, examined.survey)
        except JobRejected as error:
            self._reject(claim, error)
            return None

    def _accept(self, drafts: Sequence[Draft]) -> None:
        """Let the run folders appear, then tell everybody, and end the claims."""
        for draft in drafts:
            if draft.claim.key not in self._appeared:
                draft.commit(self._home.runs)
                self._appeared[draft.claim.key] = draft
        for draft in drafts:
            draft.place(self._home.runs)
            for record in draft.records:
                if self._jobs.get(record.id) is None:
                    self._jobs.add(record)
        if drafts:
            durable.sync_folder(self._home.runs)
        for draft in drafts:
            for event in itertools.chain(*draft.events):  # the job's own file holds them already
                self._jobs.relay(event)
        try:
            self._hand_back([(draft.claim, draft.id) for draft in drafts])
        except OSError as error:  # the jobs are safe; the claims are ended at the next start
            self._say_trouble("ending claims", error)
        for draft in drafts:
            self._close(draft.claim, Answer.done(draft.id, "accepted"))

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
        self._appeared.pop(claim.key, None)
        self._refused.pop(claim.key, None)
        for received in self._asked.pop(claim.key, []):
            self._reply(received, answer)
