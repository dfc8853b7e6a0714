"""One training process as its worker holds it: started in a group of its own, waited for, asked to stop."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from qlora_engine.job.errors import Exit
from qlora_engine.job.exits import ExitRecord, Stall
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.kernels import forget
from qlora_engine.job.record import utc_now
from qlora_worker.memory_evidence import MemoryWatch, out_of_memory
from qlora_worker.output import keep_short

TASK_MODULE = "qlora_worker.task"
# Signals that a process gets for what it runs, a kernel that was damaged on the disk, say.
BY_WHAT_IT_RAN = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT}


class TrainingProcess:
    """A spawned training process. It watches a pipe whose other end this object holds.

    Args:
        run: the run folder.
        attempt: which attempt.
        environment: what the process needs beside this process's own environment.
        kernels: what MLX has compiled for earlier processes. It is forgotten where a process crashes.
        task_module: what it runs; tests put a stand-in here.
    """

    def __init__(
        self,
        run: RunFolder,
        attempt: int,
        environment: Mapping[str, str],
        kernels: Path,
        *,
        task_module: str = TASK_MODULE,
    ) -> None:
        self._run, self._attempt, self._kernels = run, attempt, kernels
        # What an attempt left whose worker was killed with it may be cut off, and MLX takes kernels as they are.
        shutil.rmtree(run.temporary, ignore_errors=True)
        run.temporary.mkdir(mode=0o700, exist_ok=True)
        self._memory = MemoryWatch(run.output)
        self._killed = False
        reads, self._writes = os.pipe()
        self._started: datetime = utc_now()
        try:
            with run.output.open("ab") as output:
                self._process = subprocess.Popen(
                    [
                        sys.executable, "-P", "-m", task_module, run.id, str(attempt),
                        "--parent-fd", str(reads),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, **environment, "TMPDIR": str(run.temporary), "PYTHONSAFEPATH": "1"},
                    pass_fds=[reads],
                    process_group=0,
                )  # fmt: skip
        except BaseException:
            os.close(self._writes)
            raise
        finally:
            os.close(reads)

    @property
    def pid(self) -> int:
        """Its process id, also that of its group."""
        return self._process.pid

    def has_ended(self) -> bool:
        """Whether it has ended; never waits."""
        return self._process.poll() is not None

    def wait(self, seconds: float) -> bool:
        """Whether it ends within this time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.has_ended()

    def sample_memory(self) -> None:
        """Note how much memory is left; the last note before its end counts."""
        self._memory.sample()

    def keep_output_short(self) -> None:
        """Cut off what it printed first, if that is too much; a library may complain at every step for weeks."""
        keep_short(self._run.output)

    def ask_for_stacks(self) -> None:
        """Have it append its threads' stacks to the run's `stacks.txt`.

        A process that SIGSTOP holds does so once it is let go on, which costs nothing: whoever asks ends it next.
        """
        self._process.send_signal(signal.SIGUSR1)
        self._process.send_signal(signal.SIGCONT)

    def ask_to_stop(self) -> None:
        """First time: stop at a checkpoint. Second time: stop at once."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and whatever it started."""
        if not self.has_ended():
            self._killed = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def record_exit(self, stalled: Stall | None = None) -> ExitRecord:
        """Write down how it ended. It must have.

        Args:
            stalled: where the watchdog ended it.

        Raises:
            OSError: the run folder is gone or the disk is full.
        """
        code = self._process.wait()
        shutil.rmtree(self._run.temporary, ignore_errors=True)
        if -code in BY_WHAT_IT_RAN or code == Exit.SOFTWARE:
            forget(self._kernels)
        evidence = self._memory.evidence(code, killed_here=self._killed or stalled is not None)
        record = ExitRecord.of(
            code,
            attempt=self._attempt,
            started=self._started,
            ended=utc_now(),
            stalled=stalled,
            memory=out_of_memory(evidence),
        )
        record.store(self._run.exit(self._attempt))
        return record

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._writes)
