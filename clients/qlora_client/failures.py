"""What a person sees when a command fails: one clear error, never a traceback."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from qlora_engine.job.errors import Exit, QloradError

DETAILS = "client-errors.log"


def report(error: QloradError, stream: TextIO | None = None) -> int:
    """Print an error that a person can mend. Returns its exit code."""
    from qlora_engine.job.text import plain_lines  # noqa: PLC0415

    (stream or sys.stderr).write(f"qlora: {plain_lines(error)}\n")
    return int(error.exit_code)


def report_unexpected(error: Exception, logs: Path, stream: TextIO | None = None) -> int:
    """Print what the system refused, or one line for a bug, whose details go to a file. Returns the exit code."""
    from qlora_engine.job.text import plain  # noqa: PLC0415
    from qlora_engine.job.unforeseen import refused_by_system  # noqa: PLC0415

    if isinstance(error, OSError) and error.strerror is not None:
        return report(refused_by_system(error), stream)
    details = write_details(error, logs)
    where = f" Details: {details}" if details else ""
    (stream or sys.stderr).write(f"qlora: {plain(f'a bug, {type(error).__name__}: {error}', 300)}.{where}\n")
    return int(Exit.SOFTWARE)


def write_details(error: Exception, logs: Path) -> Path | None:
    """Append the traceback to a file in the logs folder, or in a new temporary one where that cannot be written."""
    text = "".join(traceback.format_exception(error))
    entry = f"{datetime.now(UTC).isoformat()} {' '.join(sys.argv[:1])}\n{text}\n"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        return _append(logs / DETAILS, entry)
    except OSError:
        pass  # the home may be what is broken
    try:
        descriptor, name = tempfile.mkstemp(prefix="qlora-error-", suffix=".log")
        os.close(descriptor)
        return _append(Path(name), entry)
    except OSError:
        return None


def _append(path: Path, text: str) -> Path:
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    return path
