"""The stream of requests: a thread that receives what clients ask and tells the owner, as much as he can hold."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from qlora_daemon.mail import Asked, Post, QueueFailed
from qlora_worker.connection import TROUBLE, in_words
from qlora_worker.requests import FIRST, Received, Requests, just_before

BLOCK_SECONDS = 5.0
AGAIN_SECONDS = 1.0  # between two tries while Redis is away
SOON_SECONDS = 0.1  # between two looks for room, while requests are left on the stream
PAGE = 500  # requests that are read at once
MOST_SUBMISSIONS = 1024  # that the owner has and has not answered; four batches of admission


class Intake(threading.Thread):
    """Receives until `stop`. The connection's own time limit must be longer than `BLOCK_SECONDS`.

    Ten thousand submissions that wait for a slow disk would fill the daemon's memory. So those beyond a limit are left
    on the stream, where they are received and unanswered, and read again in their order as others are answered. What is
    no submission is told at once: a cancel does not wait behind them.
    """

    def __init__(self, requests: Requests, post: Post) -> None:
        super().__init__(name="intake", daemon=True)
        self._requests, self._post = requests, post
        self._stopped, self._forgotten = threading.Event(), threading.Event()
        # Entries that the owner has. It takes them out while this thread adds: each operation on a set is one step.
        self._told: set[str] = set()
        self._submitted: set[str] = set()
        self._left_after: str | None = None  # behind this entry of the stream, submissions are left

    def stop(self) -> None:
        """Receive nothing more. What was received and not answered stays on the stream."""
        self._stopped.set()

    def answered(self, entries: Iterable[str]) -> None:
        """The owner has answered these, and has room for others."""
        for entry in entries:
            self._told.discard(entry)
            self._submitted.discard(entry)

    def forgotten(self) -> None:
        """The owner could not send an answer and has forgotten it: tell all again that is unanswered."""
        self._forgotten.set()

    def run(self) -> None:
        """Receive; at first, and when Redis was away or wiped, what is still unanswered."""
        while not self._stopped.is_set():
            try:
                self._requests.join()
                self._tell_again()
                while not (self._stopped.is_set() or self._forgotten.is_set()):
                    self._tell_left()
                    for received in self._requests.receive(BLOCK_SECONDS if self._left_after is None else SOON_SECONDS):
                        self._tell_or_leave(received)
            except TROUBLE as error:
                self._tell(QueueFailed(in_words(error)))
                self._stopped.wait(AGAIN_SECONDS)

    def _tell_again(self) -> None:
        self._forgotten.clear()
        self._told.clear()
        self._submitted.clear()
        self._left_after = None
        after: str | None = FIRST
        while after is not None and not self._stopped.is_set():
            page, after = self._requests.unanswered(after, PAGE)
            for received in page:
                self._tell_or_leave(received)

    def _tell_or_leave(self, received: Received) -> None:
        if received.is_submission:
            if self._left_after is None and self._room <= 0:
                self._left_after = just_before(received.entry)
            if self._left_after is not None:
                return
        self._tell_request(received)

    def _tell_left(self) -> None:
        while self._left_after is not None and self._room > 0 and not self._stopped.is_set():
            page, self._left_after = self._requests.unanswered(self._left_after, min(PAGE, self._room))
            for received in page:
                if received.entry not in self._told:
                    self._tell_request(received)

    @property
    def _room(self) -> int:
        return MOST_SUBMISSIONS - len(self._submitted)

    def _tell_request(self, received: Received) -> None:
        self._told.add(received.entry)
        if received.is_submission:
            self._submitted.add(received.entry)
        self._tell(Asked(received))

    def _tell(self, message: Asked | QueueFailed) -> None:
        if not self._stopped.is_set():
            self._post(message)
