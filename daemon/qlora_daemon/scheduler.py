"""Acts on what the dispatcher decides: lets jobs wait no longer, stops the one that must stop, and starts the next."""

from __future__ import annotations

from pathlib import Path

from qlora_daemon.children import Children
from qlora_daemon.dispatcher import Conditions, next_job, to_stop
from qlora_daemon.jobs import JobTable
from qlora_daemon.neighbour import Neighbour
from qlora_daemon.orders import Orders
from qlora_daemon.queue_health import QueueHealth
from qlora_daemon.runner import Runner
from qlora_engine.job import lock
from qlora_engine.job.events import EventLog
from qlora_engine.job.record import utc_now
from qlora_engine.job.states import State
from qlora_engine.job.turn import standing
from qlora_worker.connection import TROUBLE, in_words


class Scheduler:
    """Gathers the conditions under which jobs run, in the owner's thread.

    Args:
        jobs: the table.
        runner: starts and stops the active one.
        gpu_lock: held by whoever uses the GPU.
        orders: know of a pause.
        neighbour: knows what the machine is needed for.
        children: have the worker.
        health: whether Redis answers.
        log: the service log.
    """

    def __init__(
        self,
        jobs: JobTable,
        runner: Runner,
        *,
        gpu_lock: Path,
        orders: Orders,
        neighbour: Neighbour,
        children: Children,
        health: QueueHealth,
        log: EventLog,
    ) -> None:
        self._jobs, self._runner, self._gpu_lock = jobs, runner, gpu_lock
        self._orders, self._neighbour, self._children = orders, neighbour, children
        self._health, self._log = health, log
        self._gpu_holder: dict[str, object] | None = None

    def unblock(self) -> None:
        """Let jobs go on whose others are done, and hold those whose others did not end well."""
        for job in self._jobs:
            if job.state is State.BLOCKED:
                stands = standing(job, self._jobs.get)
                if stands.state is not State.BLOCKED:
                    self._jobs.move(job.id, stands.state, stands.reason)

    def stop_what_must(self) -> None:
        """Stop the active job at a checkpoint where its time, the machine or a more urgent job asks for it."""
        if self._runner.is_active:
            stop = to_stop(list(self._jobs), utc_now(), self._conditions(gpu_free=True))
            if stop is not None:
                self._runner.stop(stop)

    def dispatch(self) -> None:
        """Start the job whose turn it is, if one may start."""
        waiting = any(job.state is State.QUEUED for job in self._jobs)
        if not waiting:
            return
        worker = self._children.worker
        job = next_job(list(self._jobs), utc_now(), self._conditions(gpu_free=self._is_gpu_free()))
        if job is not None and worker is not None:
            try:
                self._runner.dispatch(job, worker)
            except TROUBLE as error:
                self._health.failed(in_words(error))

    def _conditions(self, *, gpu_free: bool) -> Conditions:
        return Conditions(
            queue_answers=self._health.is_up and self._children.worker is not None,
            gpu_free=gpu_free,
            resting=self._runner.resting,
            paused=self._orders.is_paused,
            hindrances=self._neighbour.hindrances(),
            looked=self._neighbour.is_known,
        )

    def _is_gpu_free(self) -> bool:
        holder = lock.holder_of(self._gpu_lock)
        if holder and holder != self._gpu_holder:
            self._log.emit("gpu.busy", holder=holder)
        self._gpu_holder = holder
        return holder is None
