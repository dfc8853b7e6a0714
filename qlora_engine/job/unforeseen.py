"""What nobody foresaw, turned into an error that a person can do something about."""

from __future__ import annotations

import traceback
from pathlib import Path

from qlora_engine.job.errors import NotAllowed, QloradError, SystemRefused
from qlora_engine.job.text import plain

LONGEST = 300  # characters of what a library says


def explained(error: Exception, output: Path) -> QloradError:
    """An error for any exception: itself, the system's refusal, or a bug whose traceback goes to `output`."""
    if isinstance(error, QloradError):
        return error
    if isinstance(error, OSError):
        return refused_by_system(error)
    with output.open("a") as file:
        traceback.print_exception(error, file=file)
    first_line = (str(error).splitlines() or [""])[0]
    return QloradError(
        f"{type(error).__name__}: {first_line}",
        where=f"the traceback is in {output}",
        remedy="Look there. If memory ran out: a smaller batch_size with more grad_accumulation_steps, "
        "grad_checkpoint: true, or a smaller max_seq_length.",
    )


def said_by(error: BaseException) -> str:
    """What an error of a library or of the system says, on one line and without a full stop, for a sentence of ours.

    The name of its class says something to programmers alone, and stands only where nothing else is said.
    """
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    elif isinstance(error, KeyError):  # whose text is the key alone
        text = f"{error.args[0]!r} is missing" if error.args else ""
    else:
        text = str(error)
    return plain(text, LONGEST).strip().rstrip(".") or f"an error without words ({type(error).__name__})"


def refused_by_system(error: OSError) -> QloradError:
    """A full disk, a missing permission, a process limit."""
    if isinstance(error, PermissionError):
        return NotAllowed(
            f"Not allowed: {error.strerror or error}.",
            where=str(error.filename) if error.filename else None,
            remedy="Give yourself access to it, or set QLORAD_HOME to a folder of your own.",
        )
    if isinstance(error, FileExistsError | NotADirectoryError):
        return SystemRefused(
            "A file stands where a folder should be.",
            where=str(error.filename) if error.filename else None,
            remedy="Move it away, or name another place: an option of the command, or QLORAD_HOME.",
        )
    return SystemRefused(
        f"The system refused: {error.strerror or error}.",
        where=str(error.filename) if error.filename else None,
        remedy="Check that the path can be written and that the disk has space, then run it again.",
    )
