"""The stream of requests: a thread that receives what clients ask and tells the owner."""

from __future__ import annotations

import threading

from qlora_daemon.mail import Asked, Post, QueueFailed
from qlora_worker.queue import TROUBLE, Requests

BLOCK_SECONDS = 5.0
AGAIN_SECONDS = 1.0  # between two tries while Redis is away


class Intake(threading.Thread):
    """Receives until `stop`. The connection's own time limit must be longer than `BLOCK_SECONDS`."""

    def __init__(self, requests: Requests, post: Post) -> None:
        super().__init__(name="intake", daemon=True)
        self._requests, self._post = requests, post
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Receive nothing more. What was received and not answered stays on the stream."""
        self._stopped.set()

    def run(self) -> None:
        """Receive; when Redis was away or wiped, first ask what is still unanswered."""
        while not self._stopped.is_set():
            try:
                self._requests.join()
                waiting = self._requests.pending()
                while not self._stopped.is_set():
                    for received in waiting:
                        self._tell(Asked(received))
                    waiting = self._requests.receive(BLOCK_SECONDS)
            except TROUBLE as error:
                self._tell(QueueFailed(f"{type(error).__name__}: {error}"))
                self._stopped.wait(AGAIN_SECONDS)

    def _tell(self, message: Asked | QueueFailed) -> None:
        if not self._stopped.is_set():
            self._post(message)
