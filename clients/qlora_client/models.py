"""Adding a model to the home: runs the converter as a process of its own and shows what it does."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from qlora_engine.job.errors import Exit, QloradError
from qlora_engine.job.text import plain, plain_lines, size

# The client must not import mlx, which the converter needs.
CONVERTER = "qlora_engine.training.convert"

Stage = dict[str, Any]  # JSON


class ConverterFailed(QloradError):
    """The converter ended without saying why."""


def add_model(source: str, home: Path, *, name: str | None, replace: bool, console: Console) -> Path:
    """Add a model by name or file, showing each stage.

    Returns:
        The model's folder.

    Raises:
        QloradError: the model cannot be added; the class has the name and exit code that the converter gave.
    """
    with _shown(console) as show:
        return convert(source, home, name=name, replace=replace, on_stage=lambda stage: show(in_words(stage)))


def convert(source: str, home: Path, *, name: str | None, replace: bool, on_stage: Callable[[Stage], None]) -> Path:
    """Run the converter, telling each stage as it begins. Raises as `add_model` does."""
    command = [sys.executable, "-P", "-m", CONVERTER, "--home", str(home), "--json"]
    command += ["--name", name] if name is not None else []
    command += ["--replace"] if replace else []
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(
            [*command, "--", source], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, text=True
        ) as process,
    ):
        try:
            last = _last_message(process.stdout or (), on_stage)
            code = process.wait()
        except BaseException:
            process.terminate()  # nobody waits for its result any more
            raise
        if code == 0 and "path" in last:
            return Path(last["path"])
        if "what" in last:
            raise error_from(last)
        complaints.seek(0)
        said = plain_lines(complaints.read()[-4000:].decode(errors="replace")).strip().splitlines()
        raise ConverterFailed(
            f"Adding {plain(source, 200)} ended with code {code}{': ' + said[-1] if said else ''}.",
            where=" ".join(command),
            remedy="Try again; if it ends so once more, this is a bug worth reporting.",
        )


def in_words(stage: Stage) -> str:
    """What the converter does, for a person."""
    bytes_ = stage.get("bytes")
    amount = f" ({size(bytes_)})" if isinstance(bytes_, int) else ""
    match stage.get("stage"):
        case "download":
            return plain(f"downloading {stage.get('package', 'the model')}{amount}")
        case "read":
            return plain(f"reading {stage.get('file', 'the file')}{amount}")
        case "write":
            return plain(f"writing {stage.get('tensors', 'the')} tensors")
        case "verify":
            return "checking that it works"
    return plain(stage.get("stage", "working"))


def error_from(message: Stage) -> QloradError:
    """The error that another process reported as JSON, with its name and exit code."""
    code = next((code for code in Exit if code == message.get("exit_code")), Exit.SOFTWARE)
    kind = type(str(message.get("error") or "QloradError"), (QloradError,), {"exit_code": code})
    error: QloradError = kind(str(message["what"]), where=message.get("where"), remedy=message.get("remedy"))
    return error


def _last_message(lines: Iterable[str], on_stage: Callable[[Stage], None]) -> Stage:
    last: Stage = {}
    for line in lines:
        try:
            message = json.loads(line)
        except ValueError:
            continue  # a library that printed something
        if isinstance(message, dict):
            last = message
            if message.get("stage") not in (None, "done"):
                on_stage(message)
    return last


@contextmanager
def _shown(console: Console) -> Iterator[Callable[[str], None]]:
    """A spinner with the present stage on a terminal, and a line for each stage elsewhere."""
    if not console.is_terminal:
        yield lambda text: console.print(Text(text))
        return
    with console.status(Text("starting")) as status:

        def show(text: str) -> None:
            status.update(Text(text))

        yield show
