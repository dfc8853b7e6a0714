"""The worker: takes a job id and an attempt from RQ, spawns the training process, records how it ended.

RQ keeps the loop, the worker's registration and its heartbeats. Its own way of running a job is not used:
no name that came from Redis is imported, no pickle is read, and its job states, registries, executions,
callbacks, webhooks, results, commands and clean-up stay untouched.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
import uuid
from types import FrameType
from typing import TYPE_CHECKING, Any

from rq import SpawnWorker
from rq.exceptions import StopRequested
from rq.serializers import JSONSerializer

from qlora_engine import launch
from qlora_engine.job.errors import Exit
from qlora_engine.job.events import EventLog, reopening_sink
from qlora_engine.job.exits import ExitRecord
from qlora_engine.job.record import utc_now
from qlora_engine.job.unforeseen import explained
from qlora_engine.wakefulness import Wakefulness
from qlora_worker.attempt_job import AttemptJob
from qlora_worker.connection import TROUBLE, connect, keys_of
from qlora_worker.queue import forget
from qlora_worker.settings import Settings
from qlora_worker.training import TASK_MODULE, TrainingProcess
from qlora_worker.watchdog import Watchdog

if TYPE_CHECKING:
    from rq import Queue
    from rq.job import Job

TTL_SECONDS = 30  # of the worker's key; RQ adds 60
HEARTBEAT_SECONDS = 5.0
LOOK_SECONDS = 1.0  # memory runs out within seconds, and afterwards nothing shows it


class TrainingWorker(SpawnWorker):
    """Runs one training process at a time.

    The first SIGTERM asks the training process to stop at a checkpoint, the second to stop at once, the third
    kills it. The worker ends when the exit is on disk, and takes no further job. Redis may go away at any
    time: the training process goes on, and so does the worker.

    Args:
        settings: where Redis and the home are.
        task_module: the module that the training process runs; tests put a stand-in here.
    """

    max_connection_wait_time = 2.0

    def __init__(self, settings: Settings, *, task_module: str = TASK_MODULE) -> None:
        self._settings, self._keys, self._task_module = settings, keys_of(settings), task_module
        self._stops = 0
        self._idle = False
        self._training: TrainingProcess | None = None
        self._wakeup = _Wakeup()
        super().__init__(
            [self._keys.queue],
            name=f"{self._keys.queue}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
            connection=connect(settings, timeout=TTL_SECONDS, retries=30),
            worker_ttl=TTL_SECONDS,
            serializer=JSONSerializer,
            job_class=AttemptJob,
            log_job_description=False,
        )

    # Running a job

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Train one attempt in a process of its own and record how it ended."""
        if not isinstance(job, AttemptJob) or job.attempt is None:
            self.log.warning("a job that is not ours was dropped")
        else:
            job_id, attempt = job.attempt
            try:
                self._train(job_id, attempt)
            except Exception as error:  # noqa: BLE001  # one job's trouble must not end the worker
                self.log.warning("attempt %d of %s: %s: %s", attempt, job_id, type(error).__name__, error)
                self._record_refusal(job_id, attempt, error)
        self._forget(job.id)

    def _train(self, job_id: str, attempt: int) -> None:
        run = self._settings.folders.run(job_id)
        if self._is_stopping():  # asked between RQ's pop and here: nothing was trained, and nothing will be
            now = utc_now()
            ExitRecord.of(Exit.TEMPFAIL, attempt=attempt, started=now, ended=now).store(run.exit(attempt))
            return
        home = str(self._settings.folders.path)  # absolute: the daemon finds its training processes by it
        wanted = launch.training_environment(self._settings.cpu_blas, run, self._settings.memory_share)
        environment = {**wanted, "QLORAD_HOME": home}
        kernels = self._settings.folders.kernels
        with TrainingProcess(run, attempt, environment, kernels, task_module=self._task_module) as training:
            self._training = training
            try:
                if self._is_stopping():  # asked while the process was being spawned
                    training.ask_to_stop()
                self.log.info("attempt %d of %s runs as process %d", attempt, job_id, training.pid)
                watchdog = Watchdog(run, attempt, self._settings.stall_seconds)
                log = EventLog([reopening_sink(run.events)], job=job_id, attempt=attempt)
                with Wakefulness(training.pid, log, wanted=self._settings.keep_awake) as awake:
                    self._watch(training, watchdog, awake)
            finally:
                self._training = None
            exit_record = training.record_exit(watchdog.stalled)
        self.log.info("attempt %d of %s: %s", attempt, job_id, exit_record.signal or exit_record.code)

    def _watch(self, training: TrainingProcess, watchdog: Watchdog, awake: Wakefulness) -> None:
        heartbeat_due = time.monotonic() + HEARTBEAT_SECONDS
        while not training.has_ended():
            self._wakeup.wait(min(LOOK_SECONDS, watchdog.every))
            training.sample_memory()
            training.keep_output_short()
            watchdog.look(training)
            if not training.has_ended():
                awake.look()
            if time.monotonic() >= heartbeat_due:
                self.heartbeat()
                heartbeat_due = time.monotonic() + HEARTBEAT_SECONDS

    def _record_refusal(self, job_id: str, attempt: int, error: Exception) -> None:
        """Say why nothing was trained. Should that fail too, the daemon finds the attempt lost."""
        run = self._settings.folders.run(job_id)
        try:
            failure = explained(error, run.output)
            with run.output.open("a") as output:
                output.write(f"{failure}\n")
            now = utc_now()
            ExitRecord.of(failure.exit_code, attempt=attempt, started=now, ended=now).store(run.exit(attempt))
        except OSError as refused:
            self.log.warning("attempt %d of %s: no exit could be written: %s", attempt, job_id, refused)

    def _is_stopping(self) -> bool:
        return self._stops > 0  # a signal handler counts them

    def _forget(self, name: str) -> None:
        try:
            with connect(self._settings, timeout=2.0) as connection:
                forget(connection, self._keys, name)
        except TROUBLE as error:
            self.log.warning("%s stays in Redis until it expires: %s", name, error)

    # Stopping

    def _install_signal_handlers(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.request_stop)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)  # so that it wakes the wait
        signal.set_wakeup_fd(self._wakeup.descriptor, warn_on_full_buffer=False)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Climb one step of the ladder; an idle worker ends."""
        self._stops += 1
        self._stop_requested = True
        if self._training is not None:
            if self._stops > 2:
                self._training.kill()
            else:
                self._training.ask_to_stop()
        elif self._idle:
            self._idle = False
            raise StopRequested

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """RQ's wait for a job, which a stop request interrupts."""
        self._idle = True
        try:
            while not self._stop_requested:
                try:
                    return super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
                except UnicodeDecodeError:
                    self.log.warning("a job whose name is not UTF-8 was dropped")
            raise StopRequested
        finally:
            self._idle = False

    def teardown(self) -> None:
        """Take the worker's own keys out of Redis, without insisting."""
        workers = f"rq:workers:{self._keys.queue}"
        try:
            with connect(self._settings, timeout=2.0) as connection, connection.pipeline() as pipeline:
                pipeline.srem(self.redis_workers_keys, self.key)
                pipeline.srem(workers, self.key)
                pipeline.delete(self.key, self.executions_key)
                pipeline.execute()
        except TROUBLE as error:
            self.log.warning("the worker's keys stay in Redis until they expire: %s", error)

    # What RQ does beside, made harmless

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Say that the worker lives. Redis being away is no reason to die or to leave a training process."""
        try:
            with connect(self._settings, timeout=1.0) as connection, connection.pipeline() as own:
                super().heartbeat(timeout, own)
                own.execute()
        except TROUBLE as error:
            self.log.debug("no heartbeat: %s", error)

    def run_maintenance_tasks(self) -> None:
        """Nothing: RQ's clean-up fails or repeats jobs whose state only the daemon knows."""

    def check_for_suspension(self, burst: bool) -> None:
        """Nothing: whether jobs run is for the daemon to decide."""

    def subscribe(self) -> None:
        """Nothing: nobody commands a worker through Redis."""

    def unsubscribe(self) -> None:
        """Nothing, likewise."""


class _Wakeup:
    """Lets a wait end at once when a signal arrives (SIGCHLD is one), without a race."""

    def __init__(self) -> None:
        self._reads, self._writes = socket.socketpair()
        for end in (self._reads, self._writes):
            end.setblocking(False)

    @property
    def descriptor(self) -> int:
        """For `signal.set_wakeup_fd`."""
        return self._writes.fileno()

    def wait(self, seconds: float) -> None:
        ready, _, _ = select.select([self._reads], [], [], seconds)
        if ready:
            self._reads.recv(4096)
