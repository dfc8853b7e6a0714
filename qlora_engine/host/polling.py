"""Waiting for what another program does in its own time and tells nobody about."""

from __future__ import annotations

import time
from collections.abc import Callable

LOOK_SECONDS = 0.2


def comes_true(look: Callable[[], bool], seconds: float) -> bool:
    """Look until it is so, for so many seconds at most; whether it came to be so."""
    end = time.monotonic() + seconds
    while not look():
        if time.monotonic() > end:
            return False
        time.sleep(LOOK_SECONDS)
    return True
