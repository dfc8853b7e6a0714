"""Having a run's report written by a process of its own, which alone imports the plotting library."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from qlora_engine.job.errors import Exit, QloradError
from qlora_engine.job.events import EventLog
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.unforeseen import said_by

WRITER = "qlora_engine.report"
TIME_LIMIT = 120.0  # seconds; the plotting library makes a list of the fonts when it is first used


class ReportFailed(QloradError):
    """The report of a job cannot be written or shown."""

    exit_code = Exit.CANTCREAT


def write_report(run: RunFolder) -> Path:
    """Write the report of a run folder, as far as the run has come; returns its path.

    Raises:
        ReportFailed: it cannot be written; with what the writer says.
    """
    command = [sys.executable, "-P", "-m", WRITER, str(run.path), "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        raise ReportFailed(
            f"The report was not written within {TIME_LIMIT:.0f} s.", where=str(run.path), remedy="Try again."
        ) from None
    except OSError as error:
        raise ReportFailed(
            f"The report's process cannot be started: {said_by(error)}.", where=str(run.path), remedy="Try again."
        ) from None
    if done.returncode != 0:
        raise _failed(run, done.returncode, done.stderr.strip().splitlines())
    return run.report


def _failed(run: RunFolder, code: int, said: list[str]) -> ReportFailed:
    """The writer's own error, which is the last that it says, or what a bug has left of it."""
    last = said[-1] if said else ""
    try:
        error = json.loads(last)
        return ReportFailed(error["what"], where=str(run.path), remedy=error["remedy"])
    except (ValueError, KeyError, TypeError):
        why = f"a bug, {last}" if last else f"its process ended with code {code}"
    return ReportFailed(
        f"The report cannot be written: {why.rstrip('.')}.",
        where=str(run.path),
        remedy=f"See all that is said, and report it: python -m {WRITER} {run.path}",
    )


def report_on(run: RunFolder, log: EventLog) -> None:
    """Write the report of a run that has ended, and say so; a report that fails changes nothing about the run.

    Call after the event with which the run ends, which the report is to show.
    """
    started = time.perf_counter()
    try:
        path = write_report(run)
    except ReportFailed as error:
        log.emit("report.failed", to=run.report.name, what=error.what)
    else:
        log.emit("report.written", path=str(path), seconds=round(time.perf_counter() - started, 1))
