"""The whole terminal for one view: drawn anew where it has changed, followed when it is resized, and given back."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any, Self

from rich.console import Console, ConsoleDimensions
from rich.text import Text

from qlora_client.signals import ended_by_signals

# Control sequences of xterm that every terminal in use knows: the second screen, the cursor, one line.
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"
_LEAVE = "\x1b[?25h\x1b[?1049l"
_CLEAR = "\x1b[2J"
_QUIT = frozenset({"q", "Q", "\x1b", "\x04", ""})  # Escape, Ctrl-D, and a terminal that is gone
_SMALLEST = (20, 5)  # columns and lines; a terminal that says less does not know its size

Frame = Callable[[int, int], Sequence[Text]]  # lines for so many columns and rows


def keep_drawing(console: Console, frame: Frame, every: float) -> None:
    """Draw a frame each `every` seconds, and at once when the terminal is resized, until `q` is typed.

    Ctrl-C raises `KeyboardInterrupt` and SIGTERM `SystemExit`, with the terminal as it was before.
    """
    with ended_by_signals(), Screen(console) as screen:
        while True:
            screen.draw(frame(*screen.size()))
            keys = screen.wait(every)
            if keys is not None and asks_to_quit(keys):
                return


def asks_to_quit(keys: str) -> bool:
    """Whether one of the keys that were typed ends the view; an arrow's sequence begins as Escape does."""
    return keys in _QUIT or (not keys.startswith("\x1b") and not _QUIT.isdisjoint(keys))


class Screen:
    """The terminal while a view has it.

    Args:
        console: that the lines are encoded for; writes to standard output.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._output = sys.stdout
        self._keyboard = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._before: list[Any] | None = None  # how the keyboard was set, as `termios` has it
        self._shown: list[str] = []
        self._wake, self._woken = os.pipe()
        for end in (self._wake, self._woken):
            os.set_blocking(end, False)
        self._handlers: dict[int, object] = {}
        self._wakeup = -1

    def size(self) -> tuple[int, int]:
        """Columns and lines there are now."""
        found = os.get_terminal_size(self._output.fileno())
        return max(found.columns, _SMALLEST[0]), max(found.lines, _SMALLEST[1])

    def draw(self, lines: Sequence[Text]) -> None:
        """Show these lines from the top; only those that have changed are sent, so that a slow connection keeps up."""
        width, height = self.size()
        if self._console.size != (width, height):
            self._console.size = ConsoleDimensions(width, height)
            self._shown = []
        encoded = [self._encoded(line) for line in lines[:height]]
        self._write(changes(self._shown, encoded))
        self._shown = encoded

    def wait(self, seconds: float) -> str | None:
        """Wait for keys; None when the time is over, or a signal came: after a resize, all is drawn anew."""
        inputs = [self._wake] if self._keyboard is None else [self._wake, self._keyboard]
        ready, _, _ = select.select(inputs, [], [], seconds)
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
            self._shown = []
        if self._keyboard in ready and self._keyboard is not None:
            return os.read(self._keyboard, 64).decode(errors="replace")
        return None

    def __enter__(self) -> Self:
        try:
            self._wakeup = signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
            self._handlers = {
                number: signal.signal(number, handler)
                for number, handler in ((signal.SIGWINCH, _noted), (signal.SIGTSTP, self._suspend))
            }
            self._take()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _take(self) -> None:
        if self._keyboard is not None:
            self._before = termios.tcgetattr(self._keyboard)
            tty.setcbreak(self._keyboard, termios.TCSANOW)
        self._write(_ENTER)
        self._shown = []

    def _give_back(self) -> None:
        with contextlib.suppress(OSError, termios.error):  # the terminal may be what went away
            self._write(_LEAVE)
        if self._keyboard is not None and self._before is not None:
            with contextlib.suppress(OSError, termios.error):
                termios.tcsetattr(self._keyboard, termios.TCSADRAIN, self._before)
        self._before = None

    def _suspend(self, _number: int, _frame: FrameType | None) -> None:
        """Ctrl-Z: the shell gets its terminal, and `fg` shows the view again."""
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()

    def _end(self) -> None:
        self._give_back()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what `signal.signal` returned
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._wake)
        os.close(self._woken)

    def _encoded(self, line: Text) -> str:
        with self._console.capture() as captured:
            self._console.print(line, end="", no_wrap=True, overflow="ellipsis", crop=True)
        return captured.get()

    def _write(self, text: str) -> None:
        self._output.write(text)
        self._output.flush()


def changes(before: Sequence[str], now: Sequence[str]) -> str:
    """What turns a screen that shows `before` into one that shows `now`; all of it, if nothing was shown.

    A line is cleared before it is written: clearing the rest of one that fills the width would take its last character.
    """
    parts = [] if before else [_CLEAR]
    for row in range(max(len(before), len(now))):
        line = now[row] if row < len(now) else ""
        if row >= len(before) or before[row] != line:
            parts.append(f"\x1b[{row + 1};1H\x1b[2K{line}")
    return "".join(parts)


def _noted(_number: int, _frame: FrameType | None) -> None:
    """The signal has woken `wait`, which is all that it is for."""
