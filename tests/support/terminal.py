"""A terminal for tests: a program runs in it, keys are typed, its size changes, and what it shows is kept."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import psutil

_TO_ROW = re.compile(r"\x1b\[(\d+);1H\x1b\[2K([^\x1b]*(?:\x1b\[[0-9;]*m[^\x1b]*)*)")
# Only a terminal that controls the session sends signals: for Ctrl-C, and when its size changes.
_PROGRAM = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from qlora_client.cli import main
sys.exit(main())
"""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Terminal:
    """One program in a pseudo-terminal. `rows` is what its screen shows by now.

    Attributes:
        said: all that the program has written.
    """

    def __init__(self, process: subprocess.Popen[bytes], master: int, keyboard: int) -> None:
        self.process, self.said = process, ""
        self._master, self._keyboard = master, keyboard
        self._typed_at = 0  # what was said by then

    def rows(self) -> dict[int, str]:
        """The lines of the screen by their number, from 1, without colours; those since it was last cleared."""
        return rows_of(self.said)

    def wait_for(self, row: int, text: str, seconds: float = 20.0) -> None:
        """Wait until a row of the screen holds this text."""
        end = time.monotonic() + seconds
        while text not in self.rows().get(row, ""):
            assert time.monotonic() < end, f"{text!r} is not in row {row} of {self.rows()}"
            self._read(0.2)

    def wait_for_text(self, text: str, seconds: float = 20.0) -> None:
        """Wait until the program has said this since something was last typed."""
        end = time.monotonic() + seconds
        while text not in self.said[self._typed_at :]:
            assert time.monotonic() < end, f"{text!r} is not in {self.said!r}"
            self._read(0.2)

    def answer(self, question: str, line: str) -> None:
        """Wait for a question and type a line."""
        self.wait_for_text(question)
        self._typed_at = len(self.said)
        self.type(f"{line}\n")

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def interrupt(self, seconds: float = 20.0) -> None:
        """Ctrl-C, when the program waits for a key.

        Between its prompt and its wait a signal would have to wait for the next key: Python looks for signals when the
        wait is interrupted.
        """
        end = time.monotonic() + seconds
        while psutil.Process(self.process.pid).status() != psutil.STATUS_SLEEPING:
            assert time.monotonic() < end, f"it does not wait for a key: {self.said[-500:]!r}"
            self._read(0.01)
        self.type("\x03")

    def resize(self, columns: int, lines: int) -> None:
        """As a window does that is pulled larger: the program is told by a signal."""
        set_size(self._master, columns, lines)

    def wait(self, seconds: float = 20.0) -> int:
        """Wait for the program's end, and read what it said; returns its exit code."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it does not end: {self.said[-500:]!r}"
            self._read(0.1)
        while self._read(0.0):
            pass
        return self.process.returncode

    def answers_line_by_line(self) -> bool:
        """Whether the keyboard is set as a shell wants it, with an echo."""
        flags = termios.tcgetattr(self._keyboard)[3]
        return bool(flags & termios.ICANON) and bool(flags & termios.ECHO)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        with contextlib.suppress(OSError):  # the program has closed its end
            self.said += os.read(self._master, 65_536).decode(errors="replace")
            return True
        return False


def rows_of(said: str) -> dict[int, str]:
    """The lines of the screen that a program has drawn, by their number, as `Terminal.rows` has them."""
    since = said.rpartition("\x1b[2J")[2]
    return {int(row): _COLOUR.sub("", text) for row, text in _TO_ROW.findall(since)}


def set_size(descriptor: int, columns: int, lines: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


@contextmanager
def in_terminal(
    arguments: Sequence[str], environment: Mapping[str, str], columns: int = 80, lines: int = 24
) -> Iterator[Terminal]:
    """Run `qlora` with these arguments in a terminal of its own."""
    master, keyboard = os.openpty()
    set_size(master, columns, lines)
    # A terminal says how large it is; what runs the tests in parallel says it of its own, for all that it starts.
    environment = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments],
        stdin=keyboard,
        stdout=keyboard,
        stderr=keyboard,
        env=environment,
        start_new_session=True,
    )
    try:
        yield Terminal(process, master, keyboard)
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(keyboard)
