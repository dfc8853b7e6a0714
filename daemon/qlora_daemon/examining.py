"""A process that examines job files, one after another, so that no file can hurt the daemon."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import Self

from qlora_engine.job.verdict import Verdict, read_line

LIMIT_BYTES = 4 << 30  # of memory, where the system can limit it
COMPLAINT_BYTES = 4096  # of what it printed, from the end
END_SECONDS = 5.0
_READ_BYTES = 1 << 16


class Ended(Exception):
    """The process ended, or talked nonsense, instead of answering."""

    def __init__(self, how: str, complaint: str) -> None:
        super().__init__(how, complaint)
        self.how, self.complaint = how, complaint


class ExaminingProcess:
    """One such process; leaving it as a context ends it.

    Args:
        module: what it runs: a request a line on standard input, a verdict a line on standard output.

    Attributes:
        answered: verdicts that it gave.
    """

    def __init__(self, module: str) -> None:
        self.answered = 0
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._refused: OSError | None = None
        self._output = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed on exit; a pipe would have to be emptied

    def __enter__(self) -> Self:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                process_group=0,
            )
            _limit_memory(self._process.pid)
        except OSError as error:
            self._refused = error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
                self._process.wait()
        self._errors.close()

    def kill(self) -> None:
        """End it now, from any thread."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def send(self, request: bytes) -> None:
        """Ask for a job file to be examined: an `ExamineRequest` as a line. A process that is gone says so later."""
        if self._process is not None and self._process.stdin is not None:
            view = memoryview(request)
            with contextlib.suppress(BrokenPipeError):
                while view:
                    view = view[self._process.stdin.write(view) or 0 :]

    def receive(self, seconds: float) -> Verdict:
        """The verdict on the request that was sent first and has none yet.

        Raises:
            Ended: there is no verdict.
            TimeoutError: not within these seconds.
        """
        if self._process is None:
            raise Ended(f"could not be started ({self._refused.strerror if self._refused else 'not tried'})", "")
        try:
            verdict = read_line(Verdict, self._line(time.monotonic() + seconds))
        except (EOFError, ValueError):
            raise self._end() from None
        self.answered += 1
        return verdict

    def _line(self, deadline: float) -> bytes:
        assert self._process is not None  # noqa: S101  # for mypy
        assert self._process.stdout is not None  # noqa: S101
        descriptor = self._process.stdout.fileno()
        parts = [self._output]
        while b"\n" not in parts[-1]:
            if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            part = os.read(descriptor, _READ_BYTES)
            if not part:
                raise EOFError
            parts.append(part)
        line, _, self._output = b"".join(parts).partition(b"\n")
        return line

    def _end(self) -> Ended:
        assert self._process is not None  # noqa: S101  # for mypy
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self._process.wait()
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - COMPLAINT_BYTES))
        how = f"ended with code {code}" if code >= 0 else f"was ended by signal {-code}"
        return Ended(how, self._errors.read().decode(errors="replace"))


def _limit_memory(pid: int) -> None:
    """Keep a hostile file from taking the machine's memory. Only Linux can limit another process.

    What is limited is data, not address space, of which a GPU's libraries reserve more than there is memory.
    """
    prlimit = getattr(resource, "prlimit", None)
    if prlimit is not None:
        with contextlib.suppress(OSError, ValueError):  # it has ended, or its limits are lower already
            prlimit(pid, resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
