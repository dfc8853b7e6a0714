"""Opening a page in the browser of the person who sits at this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def has_desktop() -> bool:
    """Whether a browser that is opened here would be seen: not over ssh, and on Linux only with a display.

    Without a display Python would start a browser of text in the terminal that somebody works in.
    """
    if "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_page(path: Path) -> bool:
    """Open a file in the browser; False where there is none."""
    import webbrowser  # noqa: PLC0415  # one command needs it

    return webbrowser.open(path.as_uri())
