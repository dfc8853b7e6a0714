"""Programs of the operating system, run with a limit of time and never through a shell."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qlora_engine.job.errors import ProgramFailed

KILL_SECONDS = 1.0


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


def run(
    command: Sequence[str], *, timeout: float, stdin: str | None = None, environment: Mapping[str, str] | None = None
) -> Finished:
    """Run a program from PATH, with messages in English.

    Args:
        command: its name and arguments.
        timeout: seconds; then it is killed.
        stdin: what it reads; nothing where None.
        environment: variables beside those of this process.

    Raises:
        ProgramFailed: there is no such program, it cannot be started, or it did not end in time.
    """
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, **(environment or {}), "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise ProgramFailed(f"There is no program `{command[0]}` here.", where=command[0]) from None
    except OSError as error:
        raise ProgramFailed(f"`{command[0]}` cannot be started: {error.strerror}.", where=command[0]) from None
    try:
        out, err = process.communicate(stdin, timeout=timeout)
    except subprocess.TimeoutExpired:
        _abandon(process)
        raise ProgramFailed(f"`{' '.join(command)}` did not end within {timeout:g} s.", where=command[0]) from None
    except BaseException:
        _abandon(process)
        raise
    return Finished(process.returncode, out, err)


def _abandon(process: subprocess.Popen[str]) -> None:
    """Kill it, and wait no longer than that takes: a program that hangs within the kernel cannot be killed."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILL_SECONDS)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
