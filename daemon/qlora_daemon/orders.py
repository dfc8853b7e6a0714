"""What people may ask of jobs and of the queue, but to submit: each request acts once, however often it comes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from qlora_daemon.dispatcher import Stop
from qlora_daemon.jobs import JobTable
from qlora_daemon.runner import Runner
from qlora_engine.job.cleaning import Part
from qlora_engine.job.disposal import dispose
from qlora_engine.job.errors import NoSuchJob, WrongState
from qlora_engine.job.events import EventLog
from qlora_engine.job.folder import Home
from qlora_engine.job.pause import KEPT, Pause
from qlora_engine.job.record import JobRecord, utc_now
from qlora_engine.job.states import ACTIVE, State
from qlora_engine.job.turn import standing
from qlora_worker.messages import Answer, Clean, Nothing, OfJob, PauseFor, Priority, Request

WAITING = (State.QUEUED, State.BLOCKED)


class Orders:
    """Carries out requests in the owner's thread.

    The key of a request is stored with what it does, in one write: one that comes again, since a daemon ended before it
    could answer, is only answered again.
    """

    def __init__(self, home: Home, jobs: JobTable, runner: Runner, log: EventLog) -> None:
        self._home = home
        self._file, self._jobs, self._runner, self._log = home.pause, jobs, runner, log
        self._pause = Pause.load(self._file)
        self._of_job: dict[str, Callable[[JobRecord, Request], None]] = {
            "cancel": self._cancel,
            "hold": self._hold,
            "release": self._release,
            "prioritise": self._prioritise,
            "retry": self._retry,
        }

    @property
    def is_paused(self) -> bool:
        """Whether nothing may start now. A pause that is over is ended."""
        if self._pause.paused and not self._pause.holds(utc_now()):
            self._store(replace(self._pause, paused=False, until=None))
        return self._pause.paused

    def carry_out(self, request: Request) -> Answer:
        """Do what is asked.

        Raises:
            ValidationError: the payload is not what the kind of request asks for.
            NoSuchJob, WrongState: it cannot be done.
            OSError: it cannot be written; nothing has changed.
        """
        if request.kind in ("pause", "resume"):
            return self._pause_or_resume(request)
        if request.kind == "clean":
            return self._clean(Clean.model_validate(request.payload))
        asked = (Priority if request.kind == "prioritise" else OfJob).model_validate(request.payload)
        record = self._jobs.get(asked.job)
        if record is None:
            raise NoSuchJob(f"There is no job {asked.job}.", where=asked.job, remedy="`qlora ls` shows them.")
        if request.key not in record.asked:
            self._of_job[request.kind](record, request)
            record = self._jobs.get(asked.job) or record
        return Answer.done(record.id, f"it is {record.state}")

    def _cancel(self, record: JobRecord, request: Request) -> None:
        if not record.is_final and not record.cancel_requested:
            self._runner.cancel(record, **_asked(record, request))

    def _hold(self, record: JobRecord, request: Request) -> None:
        _refuse_final(record, "hold")
        if record.state in WAITING:
            self._jobs.move(record.id, State.HELD, "held on request", **_asked(record, request))
        elif record.state in ACTIVE:
            self._runner.stop(Stop(record.id, "held on request", State.HELD), **_asked(record, request))

    def _release(self, record: JobRecord, request: Request) -> None:
        _refuse_final(record, "release")
        fresh = _asked(record, request) | {"ran": 0.0, "retried": 0, "rests_until": None}
        if record.state is State.HELD:
            self._let_go_on(record, "released on request", fresh)
        elif record.state is State.STOPPING and record.after_stop is State.HELD:
            fresh |= {"after_stop": State.QUEUED, "stop_reason": ""}
            if record.running_since is not None:
                fresh["running_since"] = utc_now()  # what it has trained so far counts no more
            self._jobs.note(record.id, store=True, **fresh)

    def _retry(self, record: JobRecord, request: Request) -> None:
        if record.state is State.DONE:
            raise WrongState(
                f"The job {record.id} is done.",
                where=record.id,
                remedy="Submit its job file again to run it once more.",
            )
        if record.state in (State.FAILED, State.CANCELLED):
            fresh = _asked(record, request) | {
                "crashes": 0, "stalls": {}, "reboots": 0, "retried": 0, "ran": 0.0, "rests_until": None, "ended": None,
                "cancel_requested": False, "after_stop": State.QUEUED, "stop_reason": "",
                "stop_worse_than": None, "outdone_by": None,  # a person wants to see how it goes on
            }  # fmt: skip
            self._let_go_on(record, "tried again on request", fresh)

    def _let_go_on(self, record: JobRecord, reason: str, changes: dict[str, Any]) -> None:
        """Back to where it waits; a person has decided that it goes on without the jobs that did not end well."""
        after = tuple(job for job in record.after if not self._is_lost(job))
        stands = standing(record.noting(after=after), self._jobs.get)
        self._jobs.move(record.id, stands.state, stands.reason or reason, after=after, **changes)

    def _is_lost(self, job_id: str) -> bool:
        record = self._jobs.get(job_id)
        return record is None or record.state in (State.FAILED, State.CANCELLED)

    def _prioritise(self, record: JobRecord, request: Request) -> None:
        _refuse_final(record, "prioritise")
        wanted = Priority.model_validate(request.payload)
        changes = {"priority": wanted.priority, "urgent": wanted.urgent}
        self._note(record, request, **{key: value for key, value in changes.items() if value is not None})

    def _note(self, record: JobRecord, request: Request, **changes: Any) -> JobRecord:
        return self._jobs.note(record.id, store=True, **_asked(record, request), **changes)

    def _clean(self, wanted: Clean) -> Answer:
        """Take jobs out of their place, which the client then deletes. Asked twice, it finds them gone."""
        disposed = dispose(self._home, self._jobs.by_id, self._jobs.unreadable, wanted.jobs, wanted.part)
        for job_id in disposed.gone:
            if wanted.part is Part.RUN:
                self._jobs.drop(job_id)
            self._log.bind(job=job_id).emit("job.cleaned", part=wanted.part)
        return Answer.done(None, json.dumps(disposed.kept))

    # The queue

    def _pause_or_resume(self, request: Request) -> Answer:
        until = None
        if request.kind == "pause":
            seconds = PauseFor.model_validate(request.payload).seconds
            until = utc_now() + timedelta(seconds=seconds) if seconds is not None else None
        else:
            Nothing.model_validate(request.payload)
        if request.key not in self._pause.asked:
            asked = (*self._pause.asked, request.key)[-KEPT:]
            self._store(Pause(request.kind == "pause", until, asked))
        return Answer.done(None, str(self._pause))

    def _store(self, pause: Pause) -> None:
        pause.store(self._file)
        self._pause = pause
        if pause.paused:
            self._log.emit("queue.paused", until=pause.until.isoformat() if pause.until else None)
        else:
            self._log.emit("queue.resumed")


def _asked(record: JobRecord, request: Request) -> dict[str, Any]:
    return {"asked": (*record.asked, request.key)[-KEPT:]}


def _refuse_final(record: JobRecord, verb: str) -> None:
    if record.is_final:
        raise WrongState(
            f"The job {record.id} is {record.state}, so there is nothing to {verb}.",
            where=record.id,
            remedy="`qlora retry` lets a job that failed or was cancelled go on from its checkpoint."
            if record.state is not State.DONE
            else f"`qlora show {record.id}` shows its result.",
        )
