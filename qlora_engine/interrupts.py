"""Ctrl-C while a program is still being imported, which takes up to a second: it ends quietly, as it does later."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130  # as a shell says of a program that Ctrl-C ended


@contextmanager
def quiet_while_importing() -> Iterator[None]:
    """End this process at once when it is interrupted; so early there is nothing to tidy up.

    Where SIGINT is ignored, as it is for what a script starts in the background, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
