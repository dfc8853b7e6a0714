"""Whether standard output is a terminal that a view can be drawn on; apart, since asking must cost no import."""

from __future__ import annotations

import os
import sys


def has_screen() -> bool:
    """A terminal whose lines can be written again; `TERM=dumb` is none."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
