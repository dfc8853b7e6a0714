"""The daemon's two children: Valkey first and last, the worker between."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from qlora_daemon import valkey
from qlora_daemon.mail import Post
from qlora_daemon.queue_health import QueueHealth
from qlora_daemon.shutdown import Step, worker_ladder
from qlora_daemon.supervisor import Child
from qlora_engine.job.events import EventLog
from qlora_engine.job.service_status import ChildStatus
from qlora_worker.settings import Settings

HOPELESS_STARTS = 3  # in a row
VALKEY_SECONDS = 5.0  # a healthy one ends in a tenth of a second


class Children:
    """Starts, watches and stops them, in the owner's thread.

    Args:
        settings: whether Valkey is ours, and where.
        worker_command: starts the worker.
        health: told when Valkey ends.
        log: the service log.
        post: receives what they print.
    """

    def __init__(
        self,
        settings: Settings,
        worker_command: Sequence[str],
        *,
        health: QueueHealth,
        log: EventLog,
        post: Post,
    ) -> None:
        self._settings, self._home, self._health, self._log = settings, settings.folders, health, log
        self._valkey = Child("valkey", lambda: valkey.command(self._home), log=log, post=post)
        self._worker = Child("worker", lambda: worker_command, log=log, post=post, death_pipe=True)

    def start_valkey(self) -> None:
        """Start our own server, unless the settings name another.

        Raises:
            QloradError, OSError: it cannot be started.
        """
        if self._settings.redis_url is None:
            valkey.clear_left_over(self._settings)
            self._valkey.start()

    def kill_left(self) -> None:
        """End what still runs: nobody would be there to watch it."""
        for child in (self._worker, self._valkey):
            child.give_up()
            child.kill(after=0.0)

    def start_worker(self) -> None:
        """Start the worker; Redis must answer."""
        self._worker.start()

    @property
    def worker(self) -> int | None:
        """The generation of the worker that runs, or None."""
        return self._worker.generation if self._worker.is_running else None

    @property
    def worker_pid(self) -> int | None:
        """The process id of the worker that runs, or None."""
        return self._worker.pid

    def check(self, now: float) -> None:
        """Notice ends, and start again what is due."""
        if self._valkey.check(now) is not None:
            if not self._health.has_answered and self._cannot_read_its_file():
                self._start_empty()
            self._health.ended()
        elif self._health.hangs():
            self._valkey.replace()
        self._worker.check(now)

    def replace_worker(self) -> None:
        """End a worker that hangs, and start another."""
        self._worker.replace()

    @property
    def statuses(self) -> list[ChildStatus]:
        """How the children stand, for people."""
        ours = [] if self._settings.redis_url is not None else [self._valkey]
        return [child.status for child in (*ours, self._worker)]

    def _cannot_read_its_file(self) -> bool:
        last_words = list(self._valkey.tail)
        if valkey.says_damaged(last_words):
            return True
        # Whatever it says, a server that ends before it ever answers will not by itself begin to.
        return self._valkey.status.restarts >= HOPELESS_STARTS and not valkey.says_full(last_words)

    def _start_empty(self) -> None:
        if moved := valkey.move_damaged_aside(self._home):
            self._log.emit("queue.damaged", path=str(moved[0]), moved_to=str(moved[1]))

    def seconds_until_due(self, now: float) -> float:
        """Until a child is to be started again; infinite when none is."""
        dues = [child.due - now for child in (self._valkey, self._worker) if child.due is not None]
        return max(0.0, min(dues, default=float("inf")))

    def stop_worker(self, *, active: bool, turn: Callable[[], None], presses: Callable[[], int]) -> bool:
        """Bring the worker, and through it the training process, to its end by the ladder.

        Args:
            active: a training process is under way.
            turn: called while waiting; returns after a fraction of a second.
            presses: how many stop signals have come; one more climbs a rung at once.

        Returns:
            Whether it ended without being killed.
        """
        ladder = worker_ladder(self._settings.stop_seconds, active=active)
        began = last = time.monotonic()
        climbed, pressed, killed = 0, presses(), False
        while True:
            now = time.monotonic()
            hurried, pressed = presses() > pressed, presses()
            step = ladder.due(climbed, float("inf") if hurried else now - last)
            if step is not None:
                climbed, last = climbed + 1, now
                if step is Step.ASK:
                    self._worker.ask_to_stop()
                else:
                    self._worker.kill(after=now - began)
                    killed = True
            self._worker.check(now)
            if not self._worker.is_running:
                return not killed
            turn()

    def stop_valkey(self) -> None:
        """End our server, hung or not."""
        self._valkey.ask_to_stop()
        if not self._valkey.wait(VALKEY_SECONDS):
            self._valkey.kill(after=VALKEY_SECONDS)
            self._valkey.wait(VALKEY_SECONDS)
