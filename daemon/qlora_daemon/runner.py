"""The one active attempt: given to the worker, followed, stopped on request, settled when it has ended."""

from __future__ import annotations

import contextlib
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from qlora_daemon.active import Active, rungs
from qlora_daemon.dispatcher import Stop
from qlora_daemon.jobs import JobTable
from qlora_daemon.outcome import Evidence, Move, after_exit, record_changes
from qlora_daemon.rivals import Rivals
from qlora_daemon.training_processes import find_training, holds, signal_attempt
from qlora_daemon.watch import RunWatch
from qlora_engine.job.events import Event, Sink
from qlora_engine.job.exits import ExitRecord
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.record import JobRecord, utc_now
from qlora_engine.job.states import ACTIVE, State
from qlora_engine.job.vocabulary import EVENTS
from qlora_worker.connection import TROUBLE
from qlora_worker.queue import JobQueue

LOST_SECONDS = 2.0  # without any trace of an attempt before it counts as lost
LOOK_SECONDS = 1.0  # between two looks at the lock of an attempt that runs
HUNG_LOOKS = 20  # at an attempt that lies in Redis alone; a worker takes it, and spawns, in a tenth of a second
STORE_SECONDS = 5.0  # between two records of progress on disk
ORPHAN_SECONDS = 30.0  # that an orphan has to stop by itself
STOP_SECONDS = 120.0  # that a job has to reach a checkpoint when it makes way or is held


class Runner:
    """Dispatch, watch, cancel and settle, in the owner's thread.

    Args:
        jobs: the table.
        queue: RQ's queue.
        gpu_lock: the GPU lock.
        cancel_seconds: time that a cancelled job has to reach a checkpoint.
        relay: where events of the training process go beside their own file.
        boot: which start of the machine this is; None where the system does not tell.
    """

    def __init__(
        self,
        jobs: JobTable,
        queue: JobQueue,
        *,
        gpu_lock: Path,
        cancel_seconds: float,
        relay: Sink,
        boot: str | None = None,
    ) -> None:
        self._boot = boot
        self._jobs, self._queue, self._gpu_lock = jobs, queue, gpu_lock
        self._cancel_seconds, self._relay = cancel_seconds, relay
        self._rivals = Rivals(jobs)
        self._active: Active | None = None
        self._rests: dict[str, float] = {}  # until when, monotonic: the clock may be set meanwhile

    @property
    def is_active(self) -> bool:
        """Whether an attempt is under way."""
        return self._active is not None

    @property
    def followed(self) -> tuple[str, int] | None:
        """The job and attempt under way."""
        return (self._active.job, self._active.attempt) if self._active else None

    @property
    def resting(self) -> dict[str, datetime]:
        """Jobs that may not start before a time, by the clock as it is now."""
        now, clock = time.monotonic(), utc_now()
        self._rests = {job: until for job, until in self._rests.items() if until > now}
        return {job: clock + timedelta(seconds=until - now) for job, until in self._rests.items()}

    # Starting

    def adopt(self) -> None:
        """Take up an attempt that an earlier daemon had given away, dead or alive.

        Its worker has lost its daemon and stops it; an orphan without a worker finds its pipe ended and stops
        by itself. A signal of ours would be the second, which costs the checkpoint, so it comes late.
        """
        adopted: Active | None = None
        for record in self._jobs.active:
            watch = RunWatch(self._jobs.run(record.id), record.attempt, from_start=True)
            active = Active(record.id, record.attempt, watch, worker=None)
            self._read_events(active, relay=False)
            self._end_if_outdone(active)
            if adopted is None and self._holds_gpu(active):
                adopted = active
                active.stop_rungs = rungs(time.monotonic() + ORPHAN_SECONDS, ORPHAN_SECONDS)
            else:
                self._settle(active)
        self._active = adopted

    def dispatch(self, job_id: str, worker: int) -> None:
        """Give a job to the worker: on disk first, then to Redis.

        Raises:
            RedisError, OSError: Redis does not answer; the job is queued again.
        """
        attempt = self._attempt_of(job_id) + 1
        watch = RunWatch(self._jobs.run(job_id), attempt, from_start=False)
        record = self._jobs.move(job_id, State.STARTING, attempt=attempt, boot=self._boot)
        try:
            self._queue.offer(record.id, attempt)
        except TROUBLE:
            self._jobs.move(job_id, State.QUEUED, "the queue does not answer")
            raise
        self._active = Active(job_id, attempt, watch, worker)

    def _attempt_of(self, job_id: str) -> int:
        record = self._jobs.get(job_id)
        return record.attempt if record else 0

    # Watching

    def tick(self, now: float, worker: int | None) -> None:
        """Look at what the attempt has written, whether it has ended, and whether a signal is due.

        Args:
            now: monotonic.
            worker: generation of the worker that runs; None while none does.
        """
        active = self._active
        if active is None:
            return
        self._read_events(active, relay=True)
        self._read_progress(active, now)
        if self._end_if_outdone(active):
            self._ask_to_stop(active)
        self._climb(active, now)
        if self._jobs.run(active.job).exit(active.attempt).exists():
            if not self._holds_gpu(active):
                self._settle(active)
            return
        if now - active.looked >= LOOK_SECONDS or active.no_trace_since is not None:
            active.looked = now
            if self._has_trace(active, worker):
                active.no_trace_since = None
            elif active.no_trace_since is None:
                active.no_trace_since = now
            elif now - active.no_trace_since >= LOST_SECONDS:
                self._settle(active)

    def _read_events(self, active: Active, *, relay: bool) -> None:
        for event in active.watch.new_events():
            if relay and EVENTS[event["event"]].level != "debug":
                self._relay(event)
            self._note_event(active, event)

    def _note_event(self, active: Active, event: Event) -> None:
        record = self._jobs.get(active.job)
        if record is None:
            return
        match event["event"]:
            case "training.started" | "fuse.started" if record.state is State.STARTING:
                now = utc_now()
                self._jobs.move(active.job, State.RUNNING, started=record.started or now, running_since=now)
            case "checkpoint.saved":
                step = int(event.get("step") or 0)
                changes: dict[str, Any] = {"checkpoint_step": step}
                if step > record.checkpoint_step:  # saving once more where it was, as at a stop, is no progress
                    changes |= {"crashes": 0, "stalls": {}}
                self._jobs.note(active.job, store=True, **changes)
            case "data.loaded":
                self._jobs.note(active.job, store=False, steps=int(event.get("steps") or 0))
            case "training.failed" | "fuse.failed":
                active.failure = event
            case "validation":
                active.outdone = active.outdone or self._rivals.judge(record, event)
            case "ladder.rung":
                active.rung = event
            case "phase.started" | "training.stopping":  # after a rung it trained on, or was asked to stop
                active.rung = None
            case "training.done":
                active.finished = True
                self._jobs.note(active.job, store=False, step=int(event.get("step") or 0))
            case "fuse.done":
                active.finished = True

    def _read_progress(self, active: Active, now: float) -> None:
        progress = active.watch.progress()
        if progress is not None:
            store = now - active.stored >= STORE_SECONDS
            active.stored = now if store else active.stored
            self._jobs.note(active.job, store=store, step=progress.step, steps=progress.steps)

    def _has_trace(self, active: Active, worker: int | None) -> bool:
        """Whether anything may still be training, or about to train, this attempt."""
        if self._holds_gpu(active) or find_training(self._jobs.home, active.job, active.attempt) is not None:
            active.in_redis_alone = 0
            return True
        if worker is None or worker != active.worker:
            active.in_redis_alone = 0
        try:
            attempt = (active.job, active.attempt)
            if attempt in self._queue.waiting():
                active.worker = worker if worker is not None else active.worker
                active.in_redis_alone += 1
                return True
            # Taken, and the worker that took it lives: it is about to spawn, or to write how it ended.
            if worker is not None and worker == active.worker and attempt in self._queue.taken():
                active.in_redis_alone += 1
                return True
        except TROUBLE:
            return True  # nothing can be said; Redis comes back or the daemon is stopped
        return False

    def worker_hangs(self) -> bool:
        """Whether the worker has had the attempt for too long without doing anything; true once."""
        active = self._active
        if active is None or active.in_redis_alone < HUNG_LOOKS:
            return False
        active.in_redis_alone = 0
        return True

    # Stopping

    def cancel(self, record: JobRecord, **changes: Any) -> None:
        """End a job that has not ended: at once, or at a checkpoint if it is active.

        Args:
            record: of the job.
            changes: to its record, in the same write.
        """
        active = self._active
        if active is None or active.job != record.id:
            self._jobs.move(record.id, State.CANCELLED, "cancelled on request", **changes)
            return
        if record.state is State.STOPPING:
            self._jobs.note(record.id, store=True, cancel_requested=True, **changes)
        else:
            self._jobs.move(record.id, State.STOPPING, "cancelled on request", cancel_requested=True, **changes)
            with contextlib.suppress(*TROUBLE):  # Redis away: the attempt finds `stopping` under the lock
                self._queue.withdraw(active.job, active.attempt)
        active.stop_rungs = rungs(time.monotonic(), self._cancel_seconds)

    def stop(self, stop: Stop, **changes: Any) -> None:
        """Stop the active job at a checkpoint, for a reason that says where it goes then.

        Args:
            stop: which job, and why; one that is not active stays as it is.
            changes: to its record.
        """
        active, record = self._active, self._jobs.get(stop.job)
        if active is None or record is None or active.job != stop.job:
            return
        if self._note_stop(record, stop, **changes):
            self._ask_to_stop(active)

    def _note_stop(self, record: JobRecord, stop: Stop, **changes: Any) -> bool:
        """Write down that an active job stops, and where it goes then; false where it was being stopped anyway."""
        changes |= {"after_stop": stop.after_stop, "stop_reason": stop.reason}
        if record.state is State.STOPPING:
            self._jobs.note(record.id, store=True, **changes)
            return False
        self._jobs.move(record.id, State.STOPPING, stop.reason, **changes)
        return True

    def _ask_to_stop(self, active: Active) -> None:
        with contextlib.suppress(*TROUBLE):  # as for one that is cancelled
            self._queue.withdraw(active.job, active.attempt)
        active.stop_rungs = rungs(time.monotonic(), STOP_SECONDS)

    def _end_if_outdone(self, active: Active) -> bool:
        """End a job of a sweep that is too much worse than another; true where it must be asked to stop for that.

        What a person has asked for meanwhile, to hold or to cancel it, goes before; what it has finished is finished.
        """
        found, record = active.outdone, self._jobs.get(active.job)
        if found is None or record is None or active.finished or record.state not in ACTIVE:
            return False
        if record.cancel_requested or (record.state is State.STOPPING and record.after_stop is not State.QUEUED):
            return False
        reason = found.reason(self._rivals.name_of(found.by))
        stops = self._note_stop(record, Stop(record.id, reason, State.CANCELLED), outdone_by=found.by)
        self._jobs.log(record).emit("job.outdone", step=found.step, loss=found.loss, best=found.best, by=found.by)
        return stops

    def skip(self, *, on_the_wall: float, running: float) -> None:
        """Count time as not spent in training, nor as given for a checkpoint: nothing ran meanwhile.

        Args:
            on_the_wall: seconds by which the clock on the wall went on without training; negative if it was set back.
            running: seconds of the monotonic clock.
        """
        active = self._active
        record = self._jobs.get(active.job) if active else None
        if active is None or record is None:
            return
        active.stop_rungs = [(due + running, number) for due, number in active.stop_rungs]
        if record.running_since is not None:
            later = record.running_since + timedelta(seconds=on_the_wall)
            self._jobs.note(record.id, store=True, running_since=later)

    def stop_for_shutdown(self) -> None:
        """Say on disk that the active job is being stopped; the worker passes the signal on."""
        record = self._jobs.get(self._active.job) if self._active else None
        if record is not None and record.state is not State.STOPPING:
            self._jobs.move(record.id, State.STOPPING, "the service stops")

    def kill(self) -> None:
        """End what is left of the attempt now: its worker could not."""
        if self._active is not None:
            self._signal(self._active, signal.SIGKILL)

    def _climb(self, active: Active, now: float) -> None:
        while active.stop_rungs and now >= active.stop_rungs[0][0]:
            if not self._signal(active, active.stop_rungs[0][1]):
                return  # it has not started yet; it gets the signal when it has
            active.stop_rungs.pop(0)

    def _signal(self, active: Active, number: signal.Signals) -> bool:
        return signal_attempt(self._jobs.home, self._gpu_lock, active.job, active.attempt, number)

    def _holds_gpu(self, active: Active) -> bool:
        return holds(self._gpu_lock, active.job, active.attempt)

    # Settling

    def _settle(self, active: Active) -> None:
        """Decide what becomes of the job. Nothing of the attempt is left that could write into its run."""
        run = self._jobs.run(active.job)
        self._read_events(active, relay=True)
        self._end_if_outdone(active)
        record = self._jobs.get(active.job)
        if record is None or not run.path.exists():  # somebody removed it, or its disk is away
            self._active = None
            return
        try:
            ended = ExitRecord.load(run.exit(active.attempt))
        except ValueError:
            ended = None  # damaged: as good as none
        rebooted = None not in (record.boot, self._boot) and record.boot != self._boot
        evidence = Evidence(ended, active.failure, active.finished, active.rung, rebooted)
        move = after_exit(record, evidence, output=str(run.output))
        self._jobs.log(record).emit(
            "job.exited",
            code=ended.code if ended else None,
            signal=ended.signal if ended else None,
            outcome=move.outcome,
        )
        over = ended.ended if ended is not None else _last_seen(run)
        self._apply(record, move, over, rest=active.worker is not None)
        with contextlib.suppress(*TROUBLE):  # what is left there expires, and its attempt number is outdated
            self._queue.withdraw(active.job, active.attempt)
        self._active = None

    def _apply(self, record: JobRecord, move: Move, over: datetime | None, *, rest: bool) -> None:
        if record.state is State.STARTING and move.target is State.DONE:
            self._jobs.move(record.id, State.RUNNING)
        unasked = (
            move.outcome in ("stopped", "stalled", "out_of_memory", "crashed") and record.state is not State.STOPPING
        )
        if rest and unasked and move.target is State.QUEUED:
            self._rests[record.id] = time.monotonic() + move.rest.total_seconds()
        else:
            self._rests.pop(record.id, None)
        self._jobs.move(record.id, move.target, move.reason, **record_changes(record, move, over, utc_now()))


def _last_seen(run: RunFolder) -> datetime | None:
    """When a training process of which nobody saw the end gave its last sign of life."""
    try:
        return datetime.fromtimestamp(run.pulse.stat().st_mtime, UTC)
    except OSError:
        return None
