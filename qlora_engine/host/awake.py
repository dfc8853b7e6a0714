"""Keeps the machine from going to sleep by itself while a process lives; its display may go dark."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from qlora_engine.job.errors import ProgramFailed

BOOTED = Path("/run/systemd/system")  # sd_booted(3): without it systemd-inhibit has nobody to tell
END_SECONDS = 2.0
MOST_SAID = 400  # characters of a complaint


def command(pid: int) -> list[str] | None:
    """The program that keeps the machine awake and ends by itself with the process; None where there is none.

    Never `caffeinate -d`: users of MLX report that Metal's watchdog ended training beside a display kept lit.
    """
    if shutil.which("caffeinate"):
        return ["caffeinate", "-is", "-w", str(pid)]
    if shutil.which("systemd-inhibit") and BOOTED.is_dir():
        return [
            "systemd-inhibit", "--what=idle:sleep", "--who=qlorad", "--why=a fine-tuning job runs", "--mode=block",
            "tail", f"--pid={pid}", "--follow", "/dev/null",
        ]  # fmt: skip
    return None


class Awake:
    """Holds the machine awake until `end`, or until the process ends: then the program goes, too.

    Args:
        pid: of the process.

    Raises:
        ProgramFailed: the program cannot be started.
    """

    def __init__(self, pid: int) -> None:
        found = command(pid)
        self.program = found[0] if found else None
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  # a pipe that nobody reads may fill
        self._process: subprocess.Popen[bytes] | None = None
        if found is None:
            return
        try:
            self._process = subprocess.Popen(
                found, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._complaints
            )
        except OSError as error:
            self._complaints.close()
            raise ProgramFailed(f"`{found[0]}` cannot be started: {error.strerror}.", where=found[0]) from None

    @property
    def pid(self) -> int | None:
        """Of the program; None where there is none."""
        return self._process.pid if self._process else None

    def failed(self) -> str | None:
        """Why the program ended before the process did, which the caller knows to live; None while it works."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        self._complaints.seek(0)
        said = self._complaints.read(MOST_SAID).decode(errors="replace").strip()
        return f"`{self.program}` ended with code {code}{f': {said}' if said else ''}"

    def end(self) -> None:
        """Let the machine sleep again."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        self._complaints.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
