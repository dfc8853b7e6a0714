"""What is admitted together: each draft knows of those before it, of which nobody else knows yet."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from qlora_daemon import duplicates
from qlora_daemon.claims import Claim
from qlora_daemon.drafts import Draft, Part, make, name_of, parts_of, wishes
from qlora_daemon.jobs import JobTable, member_key
from qlora_engine.job import naming
from qlora_engine.job.folder import GROUP_NAME, Home, member_ids, new_job_id, slug
from qlora_engine.job.members import ResolvedSweep
from qlora_engine.job.record import JobRecord, utc_now
from qlora_engine.job.resolved import AnyResolved, AnySpec, ResolvedFuse, kind_of
from qlora_engine.job.states import State
from qlora_engine.job.survey import Survey
from qlora_engine.job.text import plain
from qlora_engine.job.turn import Standing, standing


class Batch:
    """Makes drafts of verdicts that accept.

    Args:
        home: where their run folders will appear.
        jobs: those that there are.

    Attributes:
        drafts: as far as the batch has come.
    """

    def __init__(self, home: Home, jobs: JobTable) -> None:
        self.drafts: list[Draft] = []
        self._home, self._jobs = home, jobs
        self._records: dict[str, JobRecord] = {}  # by id
        self._alike: dict[str, JobRecord] = {}  # by content
        self._groups: set[str] = set()

    def add(self, draft: Draft) -> None:
        """One more."""
        self.drafts.append(draft)
        if draft.is_sweep:
            self._groups.add(draft.id)
        for record in draft.records:
            self._records[record.id] = self._alike[record.content or record.id] = record

    def draft(self, claim: Claim, verdict: AnyResolved | ResolvedSweep, survey: Survey | None) -> Draft:
        """The run folders of a submission, under names that are not their own yet.

        Raises:
            JobRejected: a job is the same, or one that it comes after is unknown.
            OSError: the disk refuses; nothing is left.
        """
        parts = parts_of(verdict, survey)
        contents = _contents(claim, parts)
        same = next(filter(None, map(self._unfinished_like, contents)), None)
        if same is not None and not claim.again:
            raise duplicates.refused(claim, same)
        after = [self._waits_for(part.job) for part in parts]
        now, name = utc_now(), name_of(claim, parts[0].job.spec)
        if isinstance(verdict, ResolvedSweep):
            labels = [part.label for part in parts]
            job_id = self._group_id(name, now, labels)
            records = [
                JobRecord.new(
                    member, plain(f"{name} {part.label}", 200), request=member_key(claim.key, number), content=content
                ).noting(
                    group=job_id, settings=part.settings, stop_worse_than=verdict.stop_worse_than,
                    created=now + timedelta(microseconds=number),  # they run in this order
                )
                for number, (member, part, content) in enumerate(
                    zip(member_ids(job_id, labels), parts, contents, strict=True)
                )
            ]  # fmt: skip
        else:
            job_id = new_job_id(name, now, self._home.runs, self._is_taken)
            records = [JobRecord.new(job_id, name, kind=kind_of(verdict), request=claim.key, content=contents[0])]
        placed = [
            self._placed(record.noting(**wishes(part.job.spec), after=others), part.job.spec)
            for record, part, others in zip(records, parts, after, strict=True)
        ]
        return make(self._home, claim, job_id, parts, placed)

    def _unfinished_like(self, content: str) -> JobRecord | None:
        return self._alike.get(content) or self._jobs.unfinished_like(content)

    def _waits_for(self, job: AnyResolved) -> tuple[str, ...]:
        """The jobs that it comes after: those that it names, and the one that it fuses unless that has ended."""
        after: tuple[str, ...] = ()
        if job.spec.after:
            after = naming.resolve("after", job.spec.after, [*self._jobs, *self._records.values()])
        if isinstance(job, ResolvedFuse) and job.source not in after:
            source = self._jobs.get(job.source)
            if source is None or not source.is_final:
                after = (*after, job.source)
        return after

    def _group_id(self, name: str, now: datetime, labels: Sequence[str]) -> str:
        def taken(group: str) -> bool:
            members = member_ids(group, labels)
            there = any(self._is_taken(one) or self._home.run(one).path.exists() for one in members)
            return there or self._is_taken(group)

        return new_job_id(slug(name)[:GROUP_NAME], now, self._home.runs, taken)

    def _is_taken(self, job_id: str) -> bool:
        """Whether a sweep, or what is admitted at the same time, has this id."""
        return job_id in self._records or job_id in self._groups or bool(self._jobs.of_group(job_id))

    def _placed(self, record: JobRecord, spec: AnySpec) -> JobRecord:
        """The record in the state that its job begins with."""
        stands = standing(record, lambda other: self._jobs.get(other) or self._records.get(other))
        if spec.hold:
            stands = Standing(State.HELD, "held from the start · `qlora release` lets it go on")
        return record.moved(stands.state, stands.reason)


def _contents(claim: Claim, parts: Sequence[Part]) -> list[str]:
    """What makes each job the same as another; see `duplicates.content_of`."""
    text = claim.content()
    own = [[f"{key}={value!r}" for key, value in part.settings.items()] for part in parts]
    return [
        duplicates.content_of(text, part.job, [*claim.overrides, *settings])
        for part, settings in zip(parts, own, strict=True)
    ]
