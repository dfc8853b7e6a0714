"""A window of a terminal with a shell in it: somebody types, waits, and reads what stands there."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pexpect

from support.terminal import rows_of

COLUMNS, LINES = 80, 24
# The shell marks its prompts as terminals know them, with the exit code of what came before; none shows the mark.
_MARK = r"\[\e]133;D;$?\a\]$ "
_PROMPT = re.compile(r"\x1b\]133;D;(\d+)\x07\$ ")
_COLOURS_AND_MODES = re.compile(r"\x1b\[[?0-9;]*[hlm]|\x1b\][^\x07]*\x07")
_STEP = re.compile(r"\x1b\[(\d*)([A-KS])|[\r\n]|[^\r\n\x1b]+")


class Unexpected(AssertionError):
    """What the newcomer saw is not what the tutorial promises.

    Attributes:
        code: that a command ended with, where that is what was unexpected.
    """

    def __init__(self, what: str, code: int | None = None) -> None:
        super().__init__(what)
        self.code = code


class Window:
    """A window of 80 columns with bash in it.

    Args:
        folder: where the shell starts.
        environment: of the shell.
        seconds: that anything may take.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], seconds: float) -> None:
        self._shell = pexpect.spawn(
            "/bin/bash",
            ["--norc", "--noprofile", "-i"],
            cwd=str(folder),
            env={**environment, "PS1": _MARK, "TERM": "xterm-256color", "LANG": "C.UTF-8", "HISTFILE": "/dev/null"},
            dimensions=(LINES, COLUMNS),
            encoding="utf-8",
            codec_errors="replace",
            timeout=seconds,
        )
        self._expect(_PROMPT)

    def run(self, command: str, answers: Sequence[tuple[str, str]] = (), code: int = 0) -> list[str]:
        """Type a command and wait for the next prompt.

        Args:
            command: of one line.
            answers: what it asks, and what is typed then.
            code: that it must end with.

        Returns:
            The lines that it leaves on the terminal, answers included.
        """
        self.start(command)
        said = ""
        for question, answer in answers:
            said += self._expect(question)
            self._shell.sendline(answer)
        return lines_of(said + self.end(code))

    def start(self, command: str) -> None:
        """Type a command that goes on."""
        self._shell.sendline(command)
        self._expect("\r\n")  # the terminal's echo of it

    def wait_for(self, wanted: re.Pattern[str]) -> list[str]:
        """Wait until the program that goes on has said this; the lines that it leaves by then."""
        return lines_of(self._expect(wanted))

    def watch(self, shows: Callable[[str], bool]) -> list[str]:
        """Wait until a program that draws on the whole screen shows what is wanted; the screen's lines."""
        seen, end = "", time.monotonic() + float(self._shell.timeout)
        while time.monotonic() < end:
            seen += self._expect(re.compile(r"\x1b\[\d+;1H\x1b\[2K[^\x1b]*"))
            rows = rows_of(seen)
            screen = [rows.get(number, "").rstrip() for number in range(1, LINES + 1)]
            if shows("\n".join(screen)):
                return screen
        raise Unexpected("the screen does not show what it should, but:\n" + "\n".join(rows_of(seen).values()))

    def press(self, key: str) -> None:
        """Press a key; `\\x03` is Ctrl-C."""
        self._shell.send(key)

    def end(self, code: int = 0) -> str:
        """Wait for the end of what runs; all that it has said since."""
        said = self._expect(_PROMPT)
        found = int(self._shell.match.group(1))
        if found != code:
            raise Unexpected(f"it ended with {found} in place of {code}:\n{said}", found)
        return said

    def close(self) -> None:
        """Close the window, as with a click: whatever runs in it gets a SIGHUP."""
        self._shell.close(force=True)

    def _expect(self, wanted: str | re.Pattern[str]) -> str:
        """Wait for it; what was said until then, itself included unless it is a prompt."""
        try:
            found = self._shell.expect([wanted if isinstance(wanted, re.Pattern) else re.escape(wanted), pexpect.EOF])
        except pexpect.TIMEOUT:
            raise Unexpected(f"{wanted!r} did not come, but:\n{self._shell.before}") from None
        if found == 1:
            raise Unexpected(f"{wanted!r} did not come, and the window closed:\n{self._shell.before}")
        before = str(self._shell.before)
        return before if wanted is _PROMPT else before + str(self._shell.after)


def lines_of(said: str) -> list[str]:
    """What a terminal shows of this in the end, without colours: spinners and bars that are over leave nothing."""
    lines, row, column = [""], 0, 0
    for match in _STEP.finditer(_COLOURS_AND_MODES.sub("", said)):
        text, kind = match.group(), match.group(2)
        if kind == "A":
            row = max(0, row - int(match.group(1) or 1))
        elif kind == "K":
            lines[row] = "" if match.group(1) == "2" else lines[row][:column]
        elif text == "\r":
            column = 0
        elif text == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif kind is None:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.rstrip() for line in lines]


def environment_of(folder: Path, **more: str) -> dict[str, str]:
    """The user's environment without what leads to this source or to another home."""
    left_out = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PROMPT_COMMAND", "NO_COLOR", "COLUMNS", "LINES", "MFLAGS"}
    ours = ("QLORAD_", "MAKE")  # it may be `make` that runs this
    kept = {name: value for name, value in os.environ.items() if name not in left_out and not name.startswith(ours)}
    return {**kept, "HOME": str(folder), **more}
