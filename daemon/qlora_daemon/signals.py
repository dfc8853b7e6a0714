"""Signals as messages: the handlers do nothing, a thread reads which signals came."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

from qlora_daemon.mail import Post, SignalCame

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_NOTED = (*STOPPING, signal.SIGCHLD)


@contextlib.contextmanager
def as_messages(post: Post) -> Iterator[None]:
    """Post a message for each signal, and put the old handlers back afterwards. Main thread only."""
    reads, writes = socket.socketpair()
    writes.setblocking(False)
    before_fd = signal.set_wakeup_fd(writes.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, _only_noted) for number in _NOTED}

    def read() -> None:
        while numbers := reads.recv(64):
            for number in numbers:
                post(SignalCame(number))

    reader = threading.Thread(target=read, name="signals", daemon=True)
    reader.start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_fd)
        writes.close()
        reader.join()
        reads.close()


def _only_noted(_number: int, _frame: FrameType | None) -> None:
    """The number goes to the wakeup descriptor; without a handler the signal would end the process."""
