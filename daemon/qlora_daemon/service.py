"""The daemon: what starts and stops in which order, and the owner's loop, the only place that changes state."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue

from qlora_daemon import signals
from qlora_daemon.admission import Admission
from qlora_daemon.boot import boot_id
from qlora_daemon.children import Children
from qlora_daemon.clocks import Clocks, Gap, gap
from qlora_daemon.desk import Desk
from qlora_daemon.examiner import SURVEY, Examiner
from qlora_daemon.inbox import Inbox
from qlora_daemon.intake import BLOCK_SECONDS, Intake
from qlora_daemon.jobs import JobTable
from qlora_daemon.limits import Limits
from qlora_daemon.log import empty_if_large, relayed
from qlora_daemon.mail import (
    Asked,
    ChildPrinted,
    Examined,
    FileSettled,
    FolderWatched,
    Looked,
    Message,
    MessageEnded,
    QueueFailed,
    RejectedTrimmed,
    SignalCame,
    UpkeepFailed,
)
from qlora_daemon.neighbour import Neighbour
from qlora_daemon.observers import Observers
from qlora_daemon.orders import Orders
from qlora_daemon.queue_health import QueueHealth
from qlora_daemon.reconciler import Reconciler
from qlora_daemon.runner import Runner
from qlora_daemon.scheduler import Scheduler
from qlora_daemon.upkeep import Upkeep
from qlora_engine import __version__
from qlora_engine.job import lock
from qlora_engine.job.errors import AlreadyRunning
from qlora_engine.job.events import Event, EventLog, parse_line
from qlora_engine.job.formats import NewerFormat
from qlora_engine.job.record import utc_now
from qlora_engine.job.service_status import ServiceStatus
from qlora_engine.job.states import State
from qlora_worker.connection import TROUBLE, connect, in_words, keys_of
from qlora_worker.queue import JobQueue
from qlora_worker.requests import Requests
from qlora_worker.settings import Settings, unknown_variables

ACTIVE_TICK = 0.2
QUEUED_TICK = 1.0
LOOK_SECONDS = 1.0  # between two looks at what must stop and what need not wait any more
IDLE_TICK = 30.0  # what happens comes as a message; this only bounds an oversight
READ_AT_ONCE = 1000  # messages before the jobs get their round
TROUBLE_TICK = 2.0  # after an error of our own, so that it cannot fill the log
SETTLE_SECONDS = 4.0  # for the exit of the active attempt, once its worker has ended
STDERR = 2  # its descriptor
WORKER_COMMAND = (sys.executable, "-P", "-m", "qlora_worker")


def serve(
    settings: Settings, *, worker_command: tuple[str, ...] = WORKER_COMMAND, examiner_module: str = SURVEY
) -> None:
    """Run the daemon until a signal ends it.

    Args:
        settings: as read from the environment.
        worker_command: starts the worker; tests give it another training module.
        examiner_module: examines a job in a process of its own.

    Raises:
        AlreadyRunning: another daemon serves this home.
        QloradError: something that it needs cannot be had.
    """
    home = settings.folders
    home.make()
    empty_if_large(STDERR)
    holder = {"pid": os.getpid(), "version": __version__, "started": utc_now().isoformat()}
    try:
        held = lock.acquire(home.daemon_lock, holder, wait=1.0)  # clients test the lock for an instant
    except lock.LockHeld as taken:
        raise AlreadyRunning(
            f"A daemon serves this home already (process {taken.holder.get('pid', 'unknown')}).",
            where=str(home.path),
            remedy="Use that one, stop it with SIGTERM, or set QLORAD_HOME to another folder.",
        ) from None
    with held:
        mail: SimpleQueue[Message] = SimpleQueue()
        with signals.as_messages(mail.put):
            Service(settings, mail, worker_command, examiner_module).run()


class Service:
    """One daemon, from start to stop. The caller holds the home's lock."""

    def __init__(
        self, settings: Settings, mail: SimpleQueue[Message], worker_command: tuple[str, ...], examiner_module: str
    ) -> None:
        home, post, keys = settings.folders, mail.put, keys_of(settings)
        self._settings, self._home, self._mail = settings, home, mail
        self._observers = Observers(settings, post)
        self._sinks = self._observers.sinks
        self._log = EventLog(self._sinks)
        quick = connect(settings, timeout=2.0)  # the owner never waits long for Redis
        self._queue = JobQueue(quick, keys)
        self._health = QueueHealth(settings, self._log)
        self._jobs = JobTable(home, self._sinks)
        self._runner = Runner(
            self._jobs,
            self._queue,
            gpu_lock=settings.gpu_lock_path,
            cancel_seconds=settings.cancel_seconds,
            relay=self._relay,
            boot=boot_id(),
        )
        self._orders = Orders(home, self._jobs, self._runner, self._log)
        self._intake = Intake(Requests(connect(settings, timeout=BLOCK_SECONDS + 3), keys), post)
        self._desk = Desk(
            Requests(quick, keys),
            self._health,
            self._log,
            answered=self._intake.answered,
            forgotten=self._intake.forgotten,
        )
        self._examiner = Examiner(home.path, post, module=examiner_module)
        self._upkeep = Upkeep(home, keep_rejected=settings.keep_rejected, post=post)
        self._admission = Admission(
            home,
            self._jobs,
            examine=self._examiner.hand_over,
            reply=self._desk.reply,
            log=self._log,
            rejected=self._upkeep.trim_rejected,
        )
        self._inbox = Inbox(home.jobs, settle_seconds=settings.settle_seconds, post=post)
        self._children = Children(settings, worker_command, health=self._health, log=self._log, post=post)
        self._reconciler = Reconciler(
            home, self._jobs, self._runner, connection=quick, keys=keys, health=self._health, log=self._log
        )
        self._neighbour = Neighbour(
            Limits.of(settings),
            every=settings.look_seconds,
            tell=lambda reading: post(Looked(reading)),
            log=self._log,
            runs=home.runs,
        )
        self._scheduler = Scheduler(
            self._jobs,
            self._runner,
            gpu_lock=settings.gpu_lock_path,
            orders=self._orders,
            neighbour=self._neighbour,
            children=self._children,
            health=self._health,
            log=self._log,
        )
        self._clocks = Clocks.now()
        self._started, self._status = utc_now(), ServiceStatus.none()
        self._stop_signals: list[int] = []
        self._was_up = False
        self._not_before = 0.0
        self._look_due = 0.0

    def run(self) -> None:
        """Start, serve, stop."""
        try:
            self._start()
            while not self._stop_signals:
                self._read_mail(self._pause())
                self._safely("the owner's round", self._round)
            self._stop()
        finally:
            self._children.kill_left()  # nothing, unless the above was cut short

    # Start: what needs nothing first, then what needs Redis as soon as that answers (`_came_up`)

    def _start(self) -> None:
        for name, nearest in unknown_variables(os.environ):
            self._log.emit("setting.unknown", name=name, nearest=nearest)
        self._children.start_valkey()
        for folder, error in self._jobs.load():
            if isinstance(error, NewerFormat):
                self._log.emit("run.newer", path=str(self._home.run(folder).path), what=error.what)
            else:
                self._internal_error(f"reading runs/{folder}", error)
        self._examiner.start()
        self._safely("settling what an earlier daemon left", self._runner.adopt)  # a full disk: reconciled later
        self._admission.resume()
        self._log.emit(
            "daemon.started",
            version=__version__,
            home=str(self._home.path),
            pid=os.getpid(),
            jobs=self._jobs.unfinished,
        )
        self._inbox.start()
        self._neighbour.start()
        self._upkeep.begin()
        self._observers.begin(self._log)

    def _came_up(self) -> None:
        """Redis answers: for the first time, or again."""
        if self._was_up:
            self._reconciler.soon()
            return
        self._safely("comparing disk, Redis and processes", self._reconciler.look, None)
        try:
            self._queue.clear()  # disk is the truth; whatever an earlier daemon had offered is outdated
        except TROUBLE as error:
            self._health.failed(in_words(error))  # it is probed, and this is done, again
            return
        self._was_up = True
        self._intake.start()
        self._children.start_worker()

    # The loop

    def _round(self) -> None:
        """One look at everything that does not come as a message."""
        now = time.monotonic()
        if now < self._not_before:
            return
        self._neighbour.care(self._runner.is_active or any(job.state is State.QUEUED for job in self._jobs))
        self._children.check(now)
        if self._health.probe(now):
            self._came_up()
        self._safely("comparing disk, Redis and processes", self._reconcile, now)
        self._runner.tick(now, self._children.worker)
        if self._runner.worker_hangs():
            self._children.replace_worker()
        self._say_status()
        self._observers.publish(self._jobs, self._children.statuses, queue_answers=self._health.is_up)
        if now >= self._look_due:
            self._look_due = now + LOOK_SECONDS
            self._scheduler.unblock()
            self._scheduler.stop_what_must()
        if not self._runner.is_active:
            self._scheduler.dispatch()

    def _say_status(self) -> None:
        """Write down how the service stands, for `qlora status`, when that has changed."""
        followed = self._runner.followed
        status = ServiceStatus(
            version=__version__,
            pid=os.getpid(),
            started=self._started,
            queue_answers=self._health.is_up,
            children=self._children.statuses,
            job=followed[0] if followed else None,
            hindrances=self._neighbour.hindrances(),
        )
        if status != self._status:
            self._status = status
            with contextlib.suppress(OSError):  # a full disk: the file is for people, and the next change writes it
                status.store(self._home.status)

    def _reconcile(self, now: float) -> None:
        self._reconciler.look_if_due(now, self._children.worker_pid)

    def _pause(self) -> float:
        """Seconds until something is to be looked at that does not come as a message."""
        now = time.monotonic()
        pauses = [IDLE_TICK]
        if now < self._not_before:
            return self._not_before - now
        if self._runner.is_active:
            pauses.append(ACTIVE_TICK)
        if not self._health.is_up:
            pauses.append(self._health.pause(now))
        if any(job.state in (State.QUEUED, State.BLOCKED) for job in self._jobs):
            pauses.append(QUEUED_TICK)
        pauses.append(self._children.seconds_until_due(now))
        pauses += [self._admission.seconds_until_due, self._observers.seconds_until_due]
        return min(pauses)

    # Messages

    def _read_mail(self, pause: float) -> None:
        """Wait for a message, then act on those that are there, on many verdicts at once."""
        wait: float | None = max(0.001, pause)
        with contextlib.suppress(Empty):
            for _ in range(READ_AT_ONCE):
                message = self._next_message(wait) if wait else self._mail.get_nowait()
                self._safely(type(message).__name__, self._act, message)
                wait = None
        if not self._stop_signals:
            self._safely("admitting jobs", self._admission.settle)
        self._safely("answering requests", self._desk.send)

    def _next_message(self, wait: float) -> Message:
        """Wait for one. What else went by meanwhile, a night say, is noticed before anything is done about it.

        Raises:
            Empty: there is none.
        """
        expected = time.monotonic() - self._clocks.running + wait
        try:
            return self._mail.get(timeout=wait)
        finally:
            before, self._clocks = self._clocks, Clocks.now()
            self._safely("noticing a gap in time", self._note_gap, gap(before, self._clocks, expected))

    def _note_gap(self, found: Gap | None) -> None:
        if found is None:
            return
        if found.set_by:
            self._log.emit("machine.clock_set", seconds=round(found.set_by, 1))
        if found.slept or found.stopped:
            self._log.emit("machine.slept", seconds=round(found.slept, 1), stopped=round(found.stopped, 1))
            self._neighbour.look_again()
        self._runner.skip(on_the_wall=found.on_the_wall, running=found.stopped)

    def _act(self, message: Message) -> None:
        match message:
            case SignalCame(number):
                if number != signal.SIGCHLD:
                    self._stop_signals.append(number)
            case ChildPrinted(child, line):
                self._relay_line(child, line)
            case _ if self._stop_signals:
                return  # files and requests stay where they are, for the next start
            case FileSettled(found, problem):
                self._admission.take(found, problem)
            case Examined(key, verdict, survey):
                self._admission.examined(key, verdict, survey)
            case Asked(received):
                self._desk.carry_out(received, self._admission, self._orders)
                self._look_due = 0.0
            case QueueFailed(reason):
                self._health.failed(reason)
            case FolderWatched() | UpkeepFailed() | RejectedTrimmed() | MessageEnded():
                self._say(message)
            case Looked(reading):
                self._neighbour.heard(reading)
                self._look_due = 0.0

    def _say(self, message: FolderWatched | UpkeepFailed | RejectedTrimmed | MessageEnded) -> None:
        """What others did, which the log should show."""
        match message:
            case FolderWatched(None):
                self._log.emit("inbox.watching", path=str(self._home.jobs))
            case FolderWatched(lost):
                self._log.emit("inbox.lost", path=str(self._home.jobs), reason=lost)
            case UpkeepFailed(doing, reason):
                self._log.emit("upkeep.failed", doing=doing, reason=reason)
            case RejectedTrimmed(count, kept):
                self._log.emit("rejected.trimmed", path=str(self._home.rejected), count=count, kept=kept)
            case MessageEnded(job, kind, to, ""):
                self._log.bind(job=job).emit("notify.sent", kind=kind, to=", ".join(to))
            case MessageEnded(job, kind, to, why_not):
                self._log.bind(job=job).emit("notify.failed", kind=kind, to=", ".join(to), reason=why_not)

    def _relay_line(self, child: str, line: str) -> None:
        event = parse_line(line)
        if event is not None and relayed(event):
            self._relay(event)
        elif line.strip():
            self._log.emit("child.output", child=child, line=line)

    def _relay(self, event: Event) -> None:
        if event["event"] == "checkpoint.saved" and isinstance(path := event.get("path"), str):
            self._upkeep.leave_out_of_backups(Path(path).parent)
        for sink in self._sinks:
            sink(event)

    def _safely(self, doing: str, action: Callable[..., None], *arguments: object) -> None:
        """A bug, or a disk that is full, must not end the daemon and with it the training."""
        try:
            action(*arguments)
        except Exception as error:  # noqa: BLE001
            self._not_before = time.monotonic() + TROUBLE_TICK
            self._internal_error(doing, error)

    def _internal_error(self, doing: str, error: Exception) -> None:
        try:
            self._log.emit("internal.error", doing=doing, error=f"{type(error).__name__}: {error}")
        except OSError as disk:
            sys.stderr.write(f"{doing}: {error} (and the log cannot be written: {disk})\n")

    # Stop: nothing new, then the worker with the training process, then what they left, Valkey last

    def _stop(self) -> None:
        began = time.monotonic()
        self._log.emit("daemon.stopping", signal=signal.Signals(self._stop_signals[0]).name)
        for feeder in (self._inbox, self._intake, self._examiner, self._neighbour, self._upkeep, self._observers):
            feeder.stop()
        self._safely("stopping the active job", self._runner.stop_for_shutdown)
        ended = self._children.stop_worker(
            active=self._runner.is_active, turn=self._turn, presses=lambda: len(self._stop_signals)
        )
        if not ended:
            self._safely("killing what is left of the active job", self._runner.kill)
        self._settle_active()
        self._children.stop_valkey()
        self._log.emit("daemon.stopped", seconds=round(time.monotonic() - began, 1))
        self._read_mail(0.0)

    def _turn(self) -> None:
        """Follow the active job while it is being stopped."""
        self._safely("following the active job", self._runner.tick, time.monotonic(), self._children.worker)
        self._read_mail(ACTIVE_TICK)

    def _settle_active(self) -> None:
        limit = time.monotonic() + SETTLE_SECONDS
        while self._runner.is_active and time.monotonic() < limit:
            self._turn()
