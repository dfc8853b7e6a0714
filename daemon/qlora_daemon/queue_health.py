"""Whether Redis answers: one place that knows, asks again, and says so in the log once a change."""

from __future__ import annotations

import time

from qlora_daemon import valkey
from qlora_engine.job.events import EventLog
from qlora_worker.settings import Settings

STARTING_SECONDS = 5.0  # a server that has just been started may take this long without a word
HUNG_PROBES = 5  # without an answer, after that time; counted, for a machine that sleeps makes seconds of nights
SOON, LATER = 0.1, 1.0  # between two probes, within that time and after it


class QueueHealth:
    """Down until a probe succeeds; down again when somebody's call failed.

    Attributes:
        is_up: it answered when it was last asked.
        has_answered: it has, since our own server was last started.
    """

    def __init__(self, settings: Settings, log: EventLog) -> None:
        self._settings, self._log = settings, log
        self.is_up = self.has_answered = False
        self._since = time.monotonic()
        self._told = False
        self._next_probe = 0.0
        self._unanswered = 0

    def failed(self, reason: str) -> None:
        """A call failed."""
        if self.is_up:
            self.is_up, self._since = False, time.monotonic()
        self._tell(reason)

    def ended(self) -> None:
        """The embedded server ended; it is started again and will say nothing for a moment."""
        self._unanswered, self.has_answered = 0, False
        if self.is_up:
            self.is_up, self._since = False, time.monotonic()

    def pause(self, now: float) -> float:
        """Seconds between two probes."""
        return SOON if now - self._since < STARTING_SECONDS else LATER

    def probe(self, now: float) -> bool:
        """Ask whether it answers, if that is not known. True when it has just come up."""
        if self.is_up or now < self._next_probe:
            return False
        self._next_probe = now + self.pause(now)
        if valkey.answers(self._settings):
            self.is_up, self.has_answered, self._unanswered = True, True, 0
            if self._told:
                self._log.emit("queue.reachable", seconds=round(now - self._since, 1))
                self._told = False
            return True
        if now - self._since > STARTING_SECONDS:
            self._tell("no answer")
            self._unanswered += 1
        return False

    def hangs(self) -> bool:
        """Whether a server that lives should have answered by now; true once in so many probes."""
        if self._unanswered < HUNG_PROBES:
            return False
        self._unanswered = 0
        return True

    def _tell(self, reason: str) -> None:
        if not self._told:
            self._told = True
            self._log.emit("queue.unreachable", reason=reason)
