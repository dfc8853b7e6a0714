"""Runs a command that never ends by itself in a pseudo-terminal: waits for what it shows, and types keys.

python -m support.at_a_terminal 'SHOWS' 'KEYS' ['SHOWS' 'KEYS' …] -- COMMAND …

SHOWS is a pattern. The exit code is the command's.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence

from support.terminal import set_size

SECONDS = 30.0
# Only a terminal that controls the session sends a signal for Ctrl-C.
CONTROLS = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"


def main(arguments: Sequence[str]) -> int:
    """Run it; returns its exit code, 124 where it did not show what it should, or did not end."""
    at = arguments.index("--")
    steps, command = [*zip(arguments[:at:2], arguments[1:at:2], strict=True)], arguments[at + 1 :]
    master, keyboard = os.openpty()
    set_size(master, 100, 30)
    process = subprocess.Popen(
        [sys.executable, "-c", CONTROLS, *command],
        stdin=keyboard, stdout=keyboard, stderr=keyboard, start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(keyboard)
    said, read, end = "", 0, time.monotonic() + SECONDS
    try:
        while process.poll() is None and time.monotonic() < end:
            said += _read(master)
            if steps and (shown := re.compile(steps[0][0]).search(said, read)):
                os.write(master, steps.pop(0)[1].encode())
                read = shown.end()
        while more := _read(master, 0.0):
            said += more
        sys.stdout.write(said)
        return process.returncode if process.returncode is not None and not steps else 124
    finally:
        process.kill()
        process.wait()


def _read(master: int, seconds: float = 0.1) -> str:
    if select.select([master], [], [], seconds)[0]:
        with contextlib.suppress(OSError):  # the command has closed its end
            return os.read(master, 65_536).decode(errors="replace")
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
