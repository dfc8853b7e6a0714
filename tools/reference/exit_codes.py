"""docs/exit-codes.md: how the programs end, from the errors that they know."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import qlora_client
import qlora_daemon
import qlora_engine
import qlora_worker
from qlora_engine.job.errors import Exit, QloradError
from reference.words import code, table

HEAD = """# Exit codes

The codes of `qlora`, `qlorad`, `python -m qlora_engine` and the training process, with the names of sysexits(3). An
error is one message on standard error: what is wrong, where, and what to do next. With `--json`, `qlora validate`
gives it as an object. This page is made from the errors in the code by `make docs`.
"""

MORE = """
A program that was ended by Ctrl-C exits with 130, by another signal with 128 and its number.

What some commands mean by theirs:

| command | code |
|---|---|
| `qlora submit --wait` | 0 when the job is done, 70 when it failed, 75 when it was cancelled, or no daemon takes it |
| `qlora try --now` | 75 when somebody else uses the GPU |
| `qlora status`, `qlorad status` | 69 when something does not run |
| `qlora doctor` | 69 when something keeps jobs from running |
| `qlora validate` | that of the error for which the job would be refused |
| the training process, `python -m qlora_engine` | 75 when it stopped at a checkpoint |

## Errors

From Python an error is one of these, all of them `QloradError` with `what`, `where`, `remedy` and `exit_code`.
"""


def as_markdown() -> str:
    """The page."""
    codes = ((str(int(one)), code(f"EX_{one.name}"), one.meaning) for one in Exit)
    lines = [HEAD, *table(("code", "name", "meaning"), codes), MORE]
    lines += table(
        ("error", "is a", "code", "when"),
        (
            (code(one.__name__), _parent(one), str(int(one.exit_code)), str(one.__doc__).splitlines()[0])
            for one in sorted(_errors(), key=lambda one: one.__name__)
        ),
    )
    return "\n".join(lines) + "\n"


def _parent(error: type[QloradError]) -> str:
    parent = error.__bases__[0]
    return "" if parent is QloradError else code(parent.__name__)


def _errors() -> set[type[QloradError]]:
    """Every error that any module of ours defines."""
    for package in (qlora_client, qlora_daemon, qlora_engine, qlora_worker):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    return {error for error in _below(QloradError) if not inspect.isabstract(error)}


def _below(kind: type[QloradError]) -> Iterator[type[QloradError]]:
    for one in kind.__subclasses__():
        yield one
        yield from _below(one)
