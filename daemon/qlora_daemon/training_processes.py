"""Training processes: found by the GPU lock that they hold, or before that by their command lines, and signalled."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from qlora_engine.job import lock
from qlora_engine.job.folder import JOB_ID, USUAL_HOME, Home


def training_processes(home: Home) -> dict[int, tuple[str, int]]:
    """Every training process of a home by its process id, with its job and attempt."""
    return {process.pid: attempt for process, attempt in _all() if _home_of(process) == home.path}


def find_training(home: Home, job_id: str, attempt: int) -> int | None:
    """The training process of an attempt. Two homes may have given the same id to a job in the same second."""
    found = (process for process, trains in _all() if trains == (job_id, attempt))
    return next((int(process.pid) for process in found if _home_of(process) in (home.path, None)), None)


def holds(gpu_lock: Path, job_id: str, attempt: int) -> bool:
    """Whether the process of an attempt holds the GPU lock."""
    return _holder(gpu_lock, job_id, attempt) is not None


def signal_attempt(home: Home, gpu_lock: Path, job_id: str, attempt: int, number: signal.Signals) -> bool:
    """Send a signal to the process of an attempt; false where there is none yet."""
    holder = _holder(gpu_lock, job_id, attempt)
    pid = holder.get("pid") if holder else find_training(home, job_id, attempt)
    if not isinstance(pid, int):
        return False
    signal_training(pid, number)
    return True


def signal_training(pid: int, number: signal.Signals) -> None:
    """Send a signal to a training process; SIGKILL, to what it started as well: it leads a group of its own."""
    with contextlib.suppress(ProcessLookupError):
        if number is signal.SIGKILL and os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def _holder(gpu_lock: Path, job_id: str, attempt: int) -> dict[str, Any] | None:
    """What the lock's holder says, if it is this attempt."""
    holder = lock.holder_of(gpu_lock)
    if holder and (holder.get("job"), holder.get("attempt")) == (job_id, attempt):
        return holder
    return None


def _all() -> Iterator[tuple[psutil.Process, tuple[str, int]]]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ValueError):
            arguments = process.cmdline()
            if "-m" not in arguments or "--parent-fd" not in arguments:
                continue
            job_id, attempt = arguments[arguments.index("-m") + 2 : arguments.index("--parent-fd")]
            if JOB_ID.fullmatch(job_id):
                yield process, (job_id, int(attempt))


def _home_of(process: psutil.Process) -> Path | None:
    """The home that a process serves, by its own environment: `~` of another HOME is none of ours.

    None where the system does not show its environment, as macOS does not for some of its own programs.
    """
    try:
        environment = process.environ()
        if not environment:
            return None
        named = environment.get("QLORAD_HOME", "")
        if not named.strip():
            named = str(USUAL_HOME)
        theirs = environment.get("HOME")
        path = Path(f"{theirs}{named[1:]}" if theirs and named.startswith("~/") else named).expanduser()
        return path if path.is_absolute() else Path(process.cwd(), path)
    except (psutil.Error, RuntimeError):  # the latter of a `~user` whom there is not
        return None
