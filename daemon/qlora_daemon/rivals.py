"""Which running job of a sweep is so much worse than the others at a validation that it is ended."""

from __future__ import annotations

from qlora_daemon.jobs import JobTable
from qlora_engine.job.events import Event
from qlora_engine.job.record import JobRecord
from qlora_engine.job.sweep import label
from qlora_engine.job.validations import Losses, Outdone, outdone, validation_in, validations_of


class Rivals:
    """Compares a job's validations with those of its sweep's other jobs, as their run folders tell them.

    One job trains at a time, so those of the others do not change meanwhile: whoever asks again, after a restart say,
    gets the same answer.
    """

    def __init__(self, jobs: JobTable) -> None:
        self._jobs = jobs
        self._known: dict[str, tuple[int, Losses]] = {}  # by job, read when its events had so many bytes

    def judge(self, record: JobRecord, event: Event) -> Outdone | None:
        """Whether this event of a running job is a validation for which it is ended.

        The last step is no reason: the job is at its end.
        """
        found = validation_in(event)
        if found is None or record.group is None or record.stop_worse_than is None:
            return None
        step, loss = found
        if record.steps and step >= record.steps:
            return None
        others = [other.id for other in self._jobs.of_group(record.group) if other.id != record.id]
        return outdone(step, loss, {job_id: self._losses(job_id) for job_id in others}, record.stop_worse_than)

    def name_of(self, job_id: str) -> str:
        """What a job of a sweep is called among the others."""
        record = self._jobs.get(job_id)
        return label(record.settings) if record is not None and record.settings else job_id

    def _losses(self, job_id: str) -> Losses:
        run = self._jobs.run(job_id)
        try:
            size = run.events.stat().st_size
        except FileNotFoundError:
            return {}
        if job_id not in self._known or self._known[job_id][0] != size:
            self._known[job_id] = (size, validations_of(run))
        return self._known[job_id][1]
