"""Child processes: started in groups of their own, relayed line by line, restarted with growing pauses."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

from qlora_daemon.mail import ChildPrinted, Post
from qlora_engine.job.events import EventLog
from qlora_engine.job.record import utc_now
from qlora_engine.job.service_status import ChildState, ChildStatus

FIRST_DELAY = 0.25
LONGEST_DELAY = 30.0
STEADY_SECONDS = 30.0  # a child that ran this long starts over with the first delay
TAIL_LINES = 40


def restart_delay(restarts: int) -> float:
    """Seconds before the next start, after `restarts` in a row."""
    return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(restarts, 16))


class Child:
    """One child, kept running until it is asked to stop.

    Args:
        name: for events.
        command: makes the command line anew for each start.
        log: the service log.
        post: receives what the child prints.
        death_pipe: give the child a pipe that ends with this process, as `--parent-fd N`.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[], Sequence[str]],
        *,
        log: EventLog,
        post: Post,
        death_pipe: bool = False,
    ) -> None:
        self.name = name
        self.generation = 0  # how often it was started
        self.tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self._command, self._log, self._post, self._with_pipe = command, log, post, death_pipe
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._pipe: int | None = None
        self._started = 0.0
        self._due: float | None = None  # of the next start, monotonic
        self._restarts = 0
        self._stopping = False
        self._changed = utc_now()
        self._last_exit: int | None = None

    @property
    def is_running(self) -> bool:
        """Whether it was started and its end has not been noticed."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process is not None else None

    @property
    def due(self) -> float | None:
        """When it will be started again, on the monotonic clock."""
        return self._due

    def start(self) -> None:
        """Start it.

        Raises:
            OSError: the system refuses a new process.
        """
        self._started = time.monotonic()
        self.tail.clear()
        arguments, inherited = list(self._command()), []
        if self._with_pipe:
            reads, self._pipe = os.pipe()
            arguments += ["--parent-fd", str(reads)]
            inherited = [reads]
        try:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=inherited,
                process_group=0,  # Ctrl-C in a terminal must not reach it before it reaches us
            )
        except OSError:
            self._close_pipe()
            self._due = time.monotonic() + LONGEST_DELAY  # the system may have a process to spare by then
            raise
        finally:
            for descriptor in inherited:
                os.close(descriptor)
        self._process, self.generation, self._due, self._changed = process, self.generation + 1, None, utc_now()
        self._reader = threading.Thread(target=self._relay, args=(process,), name=f"{self.name}-output", daemon=True)
        self._reader.start()
        self._log.emit("child.started", child=self.name, pid=process.pid)

    def check(self, now: float) -> int | None:
        """Notice the child's end, and start it again when that is due.

        Returns:
            Its exit code if it has just ended, negative for a signal.
        """
        code = self._noticed_end(now) if self._process is not None else None
        if code is None and self._due is not None and now >= self._due:
            self._due = now + restart_delay(self._restarts)  # should the system refuse a process now
            self._restarts += 1
            self.start()
        return code

    def ask_to_stop(self) -> None:
        """Send SIGTERM, and let it end for good."""
        self.give_up()
        if self._process is not None:
            self._process.terminate()

    def give_up(self) -> None:
        """Do not start it again."""
        self._stopping, self._due = True, None

    def kill(self, *, after: float) -> None:
        """End its whole group now, after it had `after` seconds to do so itself."""
        if self._process is not None and self._process.poll() is None:
            self._log.emit("child.killed", child=self.name, pid=self._process.pid, seconds=round(after, 1))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def replace(self) -> None:
        """End a child that hangs; it is started again like one that ended by itself."""
        if self._process is not None and self._process.poll() is None:
            self._log.emit("child.hung", child=self.name, pid=self._process.pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    @property
    def status(self) -> ChildStatus:
        """How it stands, for people."""
        if self._process is not None:
            state: ChildState = "running"
        elif self._due is not None:
            state = "waiting"
        else:
            state = "stopped"
        return ChildStatus(
            name=self.name,
            state=state,
            pid=self.pid,
            starts=self.generation,
            restarts=self._restarts,
            changed=self._changed,
            last_exit=self._last_exit,
            delay=restart_delay(max(0, self._restarts - 1)) if state == "waiting" else None,
        )

    def wait(self, seconds: float) -> bool:
        """Wait for its end; whether it came."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
            self._noticed_end(time.monotonic())
        return self._process is None

    def _noticed_end(self, now: float) -> int | None:
        process = self._process
        if process is None or process.poll() is None:
            return None
        if self._reader is not None:
            self._reader.join(1.0)  # its last lines say why it ended
        self._process, self._changed, self._last_exit = None, utc_now(), int(process.returncode)
        self._close_pipe()
        ran = now - self._started
        self._log.emit("child.exited", child=self.name, pid=process.pid, code=process.returncode, seconds=round(ran, 1))
        if not self._stopping:
            self._restarts = 0 if ran >= STEADY_SECONDS else self._restarts
            delay = restart_delay(self._restarts)
            self._due = now + delay
            self._log.emit("child.restarting", child=self.name, delay=delay, restarts=self._restarts + 1)
        return int(process.returncode)

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def _relay(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # noqa: S101  # for mypy: it was asked for
        with process.stdout as output:
            for raw in output:
                line = raw.decode(errors="replace").rstrip("\n")
                self.tail.append(line)
                self._post(ChildPrinted(self.name, line))
