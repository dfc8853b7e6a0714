"""The examiner: has job files examined, in the order of their claims, by short-lived processes of its own."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

from qlora_daemon.claims import Claim
from qlora_daemon.examining import Ended, ExaminingProcess
from qlora_daemon.mail import Examined, Post
from qlora_engine.job.errors import JobRejected
from qlora_engine.job.verdict import ExamineRequest, Verdict, as_line

LIMIT_SECONDS = 600.0  # reading some ten gigabytes of data
CLAIMS_EACH = 50_000  # examined by one process, so that whatever it gathers is given back
LINGER_SECONDS = 1.0  # that a process waits for another claim: its start costs as much as hundreds of them
AHEAD_BYTES = 12_000  # of requests that are sent before they are answered; a pipe holds 16,384 at least
SURVEY = "qlora_engine.training.survey"


class Waiting(NamedTuple):
    """A claim, and the line that asks about it."""

    claim: Claim
    request: bytes


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
        self._process: ExaminingProcess | None = None
        self._stopped = False

    def hand_over(self, claim: Claim) -> None:
        """Have a claim examined; the verdict comes as a message."""
        self._claims.put(claim)

    def stop(self) -> None:
        """End the thread and its process; what was not examined is found in `.taking/` at the next start."""
        with self._guard:
            self._stopped = True
            if self._process is not None:
                self._process.kill()
        self._claims.put(None)

    def run(self) -> None:
        """Examine until stopped; claims that wait at the same time share a process."""
        waiting: deque[Waiting] = deque()
        while not self._stopped:
            if not waiting:
                claim = self._claims.get()
                if claim is None:
                    return
                waiting.append(self._waiting(claim))
            process = ExaminingProcess(self._module)
            with process, self._known(process):
                self._examine_with(process, waiting)

    def _examine_with(self, process: ExaminingProcess, waiting: deque[Waiting]) -> None:
        """Examine the waiting claims and those that come meanwhile; what is left there is for another process."""
        sent = 0  # of the waiting claims, the first ones
        while process.answered < CLAIMS_EACH:
            sent = self._send(process, waiting, sent)
            if not waiting:
                claim = self._next(LINGER_SECONDS)
                if claim is None:
                    return
                waiting.append(self._waiting(claim))
                continue
            claim, over = waiting[0].claim, True
            try:
                verdict, over = process.receive(self._limit), False
            except Ended as end:
                if process.answered or self._stopped:
                    return  # the memory that it lacked may have gone to those before it
                verdict = Verdict.against(_gave_up(claim, end.how, end.complaint))
            except TimeoutError:
                process.kill()
                verdict = Verdict.against(_took_too_long(claim, self._limit))
            if self._stopped:
                return
            waiting.popleft()
            sent -= 1
            self._post(_message(claim, verdict))
            if over:
                return

    def _send(self, process: ExaminingProcess, waiting: deque[Waiting], sent: int) -> int:
        """Send the first claim, and the next ones if they are small, so that the process does not wait for us.

        All but a lone big one fit into the pipe: nobody ever waits to write while the other side does, too.
        """
        ahead = sum(len(one.request) for one in islice(waiting, sent))
        while True:
            if sent == len(waiting):
                claim = self._next()
                if claim is None:
                    return sent
                waiting.append(self._waiting(claim))
            request = waiting[sent].request
            if sent and ahead + len(request) > AHEAD_BYTES:
                return sent
            process.send(request)
            ahead += len(request)
            sent += 1

    def _next(self, seconds: float = 0.0) -> Claim | None:
        try:
            claim = self._claims.get(timeout=seconds) if seconds else self._claims.get_nowait()
        except Empty:
            return None
        if claim is None:
            self._claims.put(None)  # for `run`
        return claim

    @contextlib.contextmanager
    def _known(self, process: ExaminingProcess) -> Iterator[None]:
        """`stop` can end the process meanwhile."""
        with self._guard:
            self._process = process
            if self._stopped:
                process.kill()
        try:
            yield
        finally:
            with self._guard:
                self._process = None

    def _waiting(self, claim: Claim) -> Waiting:
        request = ExamineRequest(
            job_file=str(claim.job_file),
            text=claim.text,
            home=str(self._home),
            base=str(claim.relative_from) if claim.relative_from else None,
            shown_as=claim.name,
            overrides=claim.overrides,
        )
        return Waiting(claim, as_line(request).encode())


def _message(claim: Claim, verdict: Verdict) -> Examined:
    if verdict.sweep is not None:
        return Examined(claim.key, verdict.sweep)
    if verdict.job is not None:
        return Examined(claim.key, verdict.job, verdict.survey)
    return Examined(claim.key, verdict.as_error())


def _took_too_long(claim: Claim, seconds: float) -> JobRejected:
    return JobRejected(
        f"Examining {claim.name} took longer than {seconds:g} seconds.",
        where=claim.name,
        remedy="Split or shrink its data, or check the disk that it lies on.",
    )


def _gave_up(claim: Claim, how: str, complaint: str) -> JobRejected:
    last = next((line for line in reversed(complaint.splitlines()) if line.strip()), "")
    return JobRejected(
        f"{claim.name} could not be examined: the examiner {how}{': ' + last if last else ''}.",
        where=claim.name,
        remedy="Check that the file and its data are plain text of a sensible size, and drop it again.",
    )
