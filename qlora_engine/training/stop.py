"""Being asked to stop: by SIGTERM or SIGINT, or by the end of the process that started this one.

Python runs a signal handler only when `mx.eval` returns, which can take long. The wakeup descriptor is written by
the C handler at once, so a thread that reads it knows within milliseconds, in any phase, and can end the process.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from qlora_engine.job.errors import Exit

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Says whether training was asked to stop.

    The first request asks for a checkpoint. The second ends the process at once: the last checkpoint stands.
    While nothing could be lost (`nothing_to_lose`), the first one does that too.

    Args:
        parent: descriptor of a pipe whose other end the starting process holds; its end is a request.
        announce: called with the cause, from the watching thread.
        farewell: called before the process ends at once, for instance to give the terminal back.
    """

    def __init__(
        self,
        parent: int | None = None,
        *,
        announce: Callable[[str], None] = lambda _: None,
        farewell: Callable[[], None] = lambda: None,
    ) -> None:
        self._parent, self._announce, self._farewell = parent, announce, farewell
        self._asked = threading.Event()
        self._lock = threading.Lock()
        self._may_leave = self._requested = False

    @property
    def asked(self) -> bool:
        """A stop was asked for."""
        return self._asked.is_set()

    def watch(self) -> None:
        """Begin to listen. Call once, from the main thread."""
        receiving, sending = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) if hasattr(os, "pipe2") else _pipe()
        signal.set_wakeup_fd(sending, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)  # the wakeup descriptor needs a handler that is not the default
        threading.Thread(target=self._listen, args=(receiving,), name="stop", daemon=True).start()

    @contextmanager
    def nothing_to_lose(self) -> Iterator[None]:
        """A phase in which a request ends the process at once, because there is nothing to save."""
        self._leave_on_request(True)
        try:
            yield
        finally:
            self._leave_on_request(False)

    def request(self, cause: str) -> None:
        """Ask to stop; what a signal or the parent's end does."""
        with self._lock:
            again, self._requested = self._requested, True
            leave = again
        if not again:
            try:
                # On a full disk or without a terminal nobody can be told; the thread must go on listening.
                with suppress(OSError):
                    self._announce(cause)
            finally:
                with self._lock:  # not before it is told: who sees it may have ended the process by then
                    self._asked.set()
                    leave = self._may_leave
        if leave:
            self._leave()

    def _leave_on_request(self, may_leave: bool) -> None:
        with self._lock:
            self._may_leave = may_leave
            leave = may_leave and self._asked.is_set()
        if leave:
            self._leave()

    def _leave(self) -> None:
        try:
            self._farewell()
        finally:
            os._exit(Exit.TEMPFAIL)  # not sys.exit: another thread may be deep in a computation

    def _listen(self, receiving: int) -> None:
        watched = [receiving] if self._parent is None else [receiving, self._parent]
        while True:
            ready, _, _ = select.select(watched, [], [])
            if self._parent is not None and self._parent in ready:
                watched.remove(self._parent)
                if not self._requested:  # after a signal it is no second request: the checkpoint under way is wanted
                    self.request("the process that started this one has ended")
            if receiving in ready:
                for number in os.read(receiving, 64):
                    if number in SIGNALS:
                        self.request(signal.Signals(number).name)


def _pipe() -> tuple[int, int]:
    """`os.pipe2` for macOS, which lacks it."""
    receiving, sending = os.pipe()
    os.set_blocking(receiving, False)
    os.set_blocking(sending, False)
    return receiving, sending
