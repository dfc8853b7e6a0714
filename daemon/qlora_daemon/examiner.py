"""The examiner: one job file at a time in a short-lived process, so that no file can hurt the daemon."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from queue import SimpleQueue

from pydantic import ValidationError

from qlora_daemon.claims import Claim
from qlora_daemon.mail import Examined, Post
from qlora_engine.job.errors import JobRejected, QloradError
from qlora_engine.job.examine import ExamineRequest, Verdict

LIMIT_SECONDS = 600.0  # reading some ten gigabytes of data
LIMIT_BYTES = 4 << 30  # of memory, where the system can limit it
SURVEY = "qlora_engine.training.survey"


class Examiner(threading.Thread):
    """Examines claims in the order in which they were handed over, until `stop`.

    Args:
        home: QLORAD_HOME.
        post: takes the verdicts.
        module: what the process runs; `qlora_engine.job.examine` does without the model and its tokenizer.
        limit_seconds: a process may take.
    """

    def __init__(self, home: Path, post: Post, *, module: str = SURVEY, limit_seconds: float = LIMIT_SECONDS) -> None:
        super().__init__(name="examiner", daemon=True)
        self._home, self._post, self._module, self._limit = home, post, module, limit_seconds
        self._claims: SimpleQueue[Claim | None] = SimpleQueue()
        self._guard = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def hand_over(self, claim: Claim) -> None:
        """Have a claim examined; the verdict comes as a message."""
        self._claims.put(claim)

    def stop(self) -> None:
        """End the thread and its process; what was not examined is found in `.taking/` at the next start."""
        with self._guard:
            self._stopped = True
            if self._process is not None:
                _kill(self._process)
        self._claims.put(None)

    def run(self) -> None:
        """Examine until stopped."""
        while (claim := self._claims.get()) is not None:
            verdict = self._examine(claim)
            if self._stopped:
                return
            self._post(verdict)

    def _examine(self, claim: Claim) -> Examined:
        try:
            verdict = self._verdict(claim)
        except QloradError as error:
            return Examined(claim.key, error)
        if verdict.job is not None:
            return Examined(claim.key, verdict.job, verdict.survey)
        return Examined(
            claim.key, JobRejected(verdict.what or "It is not a job.", where=verdict.where, remedy=verdict.remedy)
        )

    def _verdict(self, claim: Claim) -> Verdict:
        request = ExamineRequest(
            job_file=str(claim.job_file),
            home=str(self._home),
            base=str(claim.relative_from) if claim.relative_from else None,
            shown_as=claim.name,
        )
        try:
            code, output, complaint = self._ask(request.model_dump_json().encode())
        except subprocess.TimeoutExpired:
            raise JobRejected(
                f"Examining {claim.name} took longer than {self._limit:g} seconds.",
                where=claim.name,
                remedy="Split or shrink its data, or check the disk that it lies on.",
            ) from None
        except OSError as error:
            raise _gave_up(claim, f"could not be started ({error.strerror})", "") from None
        try:
            return Verdict.model_validate_json(output)
        except ValidationError:
            how = f"ended with code {code}" if code >= 0 else f"was ended by signal {-code}"
            raise _gave_up(claim, how, complaint) from None

    def _ask(self, request: bytes) -> tuple[int, bytes, str]:
        with self._guard:
            if self._stopped:
                return -signal.SIGTERM, b"", ""
            process = self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                process_group=0,
            )
        try:
            _limit_memory(process.pid)
            output, errors = process.communicate(request, timeout=self._limit)
        except subprocess.TimeoutExpired:
            _kill(process)
            process.communicate()
            raise
        finally:
            with self._guard:
                self._process = None
        return process.returncode, output, errors.decode(errors="replace")


def _gave_up(claim: Claim, how: str, complaint: str) -> JobRejected:
    last = next((line for line in reversed(complaint.splitlines()) if line.strip()), "")
    return JobRejected(
        f"{claim.name} could not be examined: the examiner {how}{': ' + last if last else ''}.",
        where=claim.name,
        remedy="Check that the file and its data are plain text of a sensible size, and drop it again.",
    )


def _limit_memory(pid: int) -> None:
    """Keep a hostile file from taking the machine's memory. Only Linux can limit another process.

    What is limited is data, not address space, of which a GPU's libraries reserve more than there is memory.
    """
    prlimit = getattr(resource, "prlimit", None)
    if prlimit is not None:
        with contextlib.suppress(OSError, ValueError):  # it has ended, or its limits are lower already
            prlimit(pid, resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
