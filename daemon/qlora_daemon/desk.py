"""What clients ask, carried out and answered in the owner's thread."""

from __future__ import annotations

from pydantic import ValidationError

from qlora_daemon.admission import Admission
from qlora_daemon.jobs import JobTable
from qlora_daemon.queue_health import QueueHealth
from qlora_daemon.runner import Runner
from qlora_engine.job.errors import JobRejected, NoSuchJob, QloradError
from qlora_engine.job.events import EventLog
from qlora_engine.job.unforeseen import refused_by_system
from qlora_worker.messages import Answer, Cancellation, Request, Submission
from qlora_worker.queue import TROUBLE, Received, Requests


class Desk:
    """Carries out requests. Each can come again after a fault, and is then only answered again."""

    def __init__(self, requests: Requests, jobs: JobTable, health: QueueHealth, log: EventLog) -> None:
        self._requests, self._jobs, self._health, self._log = requests, jobs, health, log

    def carry_out(self, received: Received, admission: Admission, runner: Runner) -> None:
        """Do what is asked, or answer why not."""
        request = received.request
        if request is None:
            self.reply(received, Answer.refused(_not_understood(received.problem)))
            return
        self._log.emit("request.received", request=request.key, kind=request.kind)
        try:
            if request.kind == "submit":
                admission.submit(received, Submission.model_validate(request.payload))
            else:
                self.reply(received, self._cancel(request, runner))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            self.reply(received, Answer.refused(_not_understood(f"{place}: {first['msg']}")))
        except QloradError as error:
            self.reply(received, Answer.refused(error))
        except OSError as error:
            self.reply(received, Answer.refused(refused_by_system(error)))

    def _cancel(self, request: Request, runner: Runner) -> Answer:
        job_id = Cancellation.model_validate(request.payload).job
        record = self._jobs.get(job_id)
        if record is None:
            raise NoSuchJob(f"There is no job {job_id}.", where=job_id, remedy="`qlora ls` shows them.")
        if record.is_final or record.cancel_requested:
            return Answer.done(job_id, f"it is {record.state} already")
        runner.cancel(record)
        record = self._jobs.get(job_id) or record
        return Answer.done(job_id, f"it is {record.state}")

    def reply(self, received: Received, answer: Answer) -> None:
        """Answer. If Redis is away the request stays on its stream, and is answered when it is back."""
        try:
            self._requests.answer(received, answer)
        except TROUBLE as error:
            self._health.failed(f"{type(error).__name__}: {error}")
            return
        self._log.emit("request.answered", request=received.key, ok=answer.ok, what=answer.what or answer.job or "")


def _not_understood(problem: str) -> JobRejected:
    return JobRejected(
        f"The request cannot be understood: {problem}.",
        remedy="Use a client of the daemon's version (`qlora --version`, `qlorad --version`).",
    )
