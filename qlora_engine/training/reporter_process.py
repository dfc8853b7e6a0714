"""The process that talks to the services of `report_to`: `python -P -m qlora_engine.training.reporter_process`.

Reads JSON lines: which services and what run, then the numbers of a step at a time. Answers with a line for each
service, when it has failed or when it is done. The end of its input is the end of the run.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from qlora_engine.job.unforeseen import said_by
from qlora_engine.training.services import Identity, Service, open_service

PENDING = 1000  # messages that wait for a service before it is given up
END_SECONDS = 60.0  # when training was killed and nobody is left to end this process

Message = Mapping[str, Any]
Answer = Callable[[str, str | None], None]


def main() -> int:
    """Serve one run."""
    messages, answer = _take_over_streams()
    first = json.loads(next(messages))
    identity = Identity(**first["identity"])
    feeds = [Feed(name, partial(open_service, name, identity), answer) for name in first["services"]]
    for line in messages:
        for feed in feeds:
            feed.put(json.loads(line))
    deadline = time.monotonic() + END_SECONDS
    for feed in feeds:
        feed.put(None)
    for feed in feeds:
        feed.join(deadline)
    if any(feed.hangs for feed in feeds):
        os._exit(1)  # a library that hangs would hang again while Python ends
    return 0


def _take_over_streams() -> tuple[Any, Answer]:
    """Input and output for us; what the libraries print goes to standard error, and they have nobody to ask."""
    messages, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)

    def answer(service: str, failed: str | None) -> None:
        os.write(answers, json.dumps({"service": service, "failed": failed}).encode() + b"\n")

    return messages, answer


class Feed:
    """A thread that opens a service, sends it what lies in a bounded queue, and closes it.

    Args:
        answer: called once, with the service's name and why it failed, or None when it is done.
    """

    def __init__(self, name: str, opening: Callable[[], Service], answer: Answer) -> None:
        self._name, self._opening, self._answer = name, opening, answer
        self._queue: queue.Queue[Message | None] = queue.Queue(PENDING)
        self._lock = threading.Lock()
        self._over = False
        self._thread = threading.Thread(target=self._work, name=f"report-to-{name}", daemon=True)
        self._thread.start()

    @property
    def hangs(self) -> bool:
        """The service has not come to its end."""
        return self._thread.is_alive()

    def put(self, message: Message | None) -> None:
        """Hand over a message, None for the end, without waiting."""
        if not self._over:
            try:
                self._queue.put_nowait(message)
            except queue.Full:
                self._end(f"it does not keep up: {PENDING} reports wait for it")

    def join(self, deadline: float) -> None:
        """Wait for the thread's end until a time of `time.monotonic`."""
        if not self._over:
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        try:
            service = self._opening()
            while not self._over and (message := self._queue.get()) is not None:
                service.send(message["step"], message["values"])
            service.close()
        except Exception as error:  # noqa: BLE001  # a service may raise anything, and is then left out
            self._end(said_by(error))
        else:
            self._end(None)

    def _end(self, failed: str | None) -> None:
        with self._lock:
            first, self._over = not self._over, True
        if first:
            self._answer(self._name, failed)


if __name__ == "__main__":
    sys.exit(main())
