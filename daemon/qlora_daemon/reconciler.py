"""Sees what reconcile compares, and does what it answers; in the owner's thread, at start and every minute."""

from __future__ import annotations

import signal

from redis import Redis

from qlora_daemon import reconcile
from qlora_daemon.jobs import JobTable
from qlora_daemon.queue_health import QueueHealth
from qlora_daemon.reconcile import Answer, Attempt, Disk, Finding, Processes
from qlora_daemon.runner import Runner
from qlora_daemon.training_processes import signal_training, training_processes
from qlora_engine.job.events import EventLog
from qlora_engine.job.folder import Home
from qlora_worker import contents
from qlora_worker.connection import TROUBLE, Keys, in_words
from qlora_worker.queue import attempt_in

EVERY_SECONDS = 60.0


class Reconciler:
    """Keeps disk, Redis and the processes of one home in agreement.

    Args:
        home: whose run folders and processes these are.
        jobs: the owner's table.
        runner: knows the attempt that is followed, and settles those that nobody follows.
        connection: to Redis, with a short time limit.
        keys: of this home.
        health: told when Redis does not answer.
        log: the service log.
    """

    def __init__(
        self,
        home: Home,
        jobs: JobTable,
        runner: Runner,
        *,
        connection: Redis,
        keys: Keys,
        health: QueueHealth,
        log: EventLog,
    ) -> None:
        self._home, self._jobs, self._runner = home, jobs, runner
        self._connection, self._keys, self._health, self._log = connection, keys, health, log
        self._due = 0.0

    def soon(self) -> None:
        """Look at the next round: Redis has come back, say."""
        self._due = 0.0

    def look_if_due(self, now: float, worker: int | None) -> None:
        """Compare and put right, if it is time.

        Args:
            now: monotonic.
            worker: process id of the worker that runs; None while none does.
        """
        if now >= self._due:
            self._due = now + EVERY_SECONDS
            self.look(worker)

    def look(self, worker: int | None) -> None:
        """Compare and put right."""
        redis = self._see_redis()
        processes = Processes(worker, training_processes(self._home))
        for finding in reconcile.compare(self._see_disk(), redis, processes):
            self._put_right(finding)

    def _see_disk(self) -> Disk:
        records = {record.id: record for record in self._jobs}
        return Disk(records, frozenset(self._jobs.folders()), self._runner.followed)

    def _see_redis(self) -> reconcile.Redis | None:
        if not self._health.is_up:
            return None
        try:
            found = contents.read_contents(self._connection, self._keys)
        except TROUBLE as error:
            self._health.failed(in_words(error))
            return None

        def attempts(names: tuple[str, ...] | frozenset[str]) -> dict[str, Attempt | None]:
            return {name: attempt_in(name, self._keys) for name in names}

        workers = {name: contents.process_of_worker(name, self._keys) for name in found.workers}
        return reconcile.Redis(attempts(found.waiting), attempts(found.taken), attempts(found.hashes), workers)

    def _put_right(self, finding: Finding) -> None:
        try:
            self._carry_out(finding)
        except TROUBLE as error:  # the next look finds it again
            if finding.answer in (Answer.FORGET_ATTEMPT, Answer.FORGET_WORKER):
                self._health.failed(in_words(error))
                return
            raise
        log = self._log.bind(job=finding.job) if finding.job else self._log
        log.emit("state.reconciled", found=str(finding.kind), subject=finding.subject, answer=str(finding.answer))

    def _carry_out(self, finding: Finding) -> None:
        match finding.answer:
            case Answer.FORGET_ATTEMPT:
                contents.forget_attempts(self._connection, self._keys, [finding.subject])
            case Answer.FORGET_WORKER:
                contents.forget_worker(self._connection, self._keys, finding.subject)
            case Answer.KILL:
                signal_training(int(finding.subject), signal.SIGKILL)
            case Answer.SETTLE:
                self._runner.adopt()
            case Answer.DROP:
                self._jobs.drop(finding.subject)
            case Answer.LOAD:
                self._jobs.read(finding.subject)
