"""Programs of the operating system, run with a limit of time and never through a shell."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from qlora_engine.job.errors import ProgramFailed


@dataclass(frozen=True)
class Finished:
    """How a program ended.

    Attributes:
        code: its exit code; negative for a signal.
        out: what it printed, undecodable bytes replaced.
        err: what it complained of.
    """

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Its complaint, or what it printed where it had none, for a message."""
        return (self.err.strip() or self.out.strip())[:400]


def run(command: Sequence[str], *, timeout: float, stdin: str | None = None) -> Finished:
    """Run a program from PATH, with messages in English.

    Args:
        command: its name and arguments.
        timeout: seconds; then it is killed.
        stdin: what it reads; nothing where None.

    Raises:
        ProgramFailed: there is no such program, it cannot be started, or it did not end in time.
    """
    try:
        finished = subprocess.run(
            list(command),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise ProgramFailed(f"There is no program `{command[0]}` here.", where=command[0]) from None
    except subprocess.TimeoutExpired:
        raise ProgramFailed(f"`{' '.join(command)}` did not end within {timeout:g} s.", where=command[0]) from None
    except OSError as error:
        raise ProgramFailed(f"`{command[0]}` cannot be started: {error.strerror}.", where=command[0]) from None
    return Finished(finished.returncode, finished.stdout, finished.stderr)
