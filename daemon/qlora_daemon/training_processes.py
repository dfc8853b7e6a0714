"""Training processes by their command lines: before one has the GPU's lock, nothing else names it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

from qlora_engine.job.folder import JOB_ID, USUAL_HOME, Home


def training_processes(home: Home) -> dict[int, tuple[str, int]]:
    """Every training process of a home by its process id, with its job and attempt."""
    return {process.pid: attempt for process, attempt in _all() if _home_of(process) == home.path}


def find_training(home: Home, job_id: str, attempt: int) -> int | None:
    """The training process of an attempt. Two homes may have given the same id to a job in the same second."""
    found = (process for process, trains in _all() if trains == (job_id, attempt))
    return next((int(process.pid) for process in found if _home_of(process) in (home.path, None)), None)


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
