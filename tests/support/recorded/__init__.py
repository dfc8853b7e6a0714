"""Stand-ins for programs that only macOS has: they check every argument and answer as the real ones were seen to do.

`install` puts one of them on PATH. Each is a module here with a function `main(arguments, state) -> int`. What it
answers depends on `state`, a JSON object in a file that the test reads and writes between the calls. Calls are kept.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPT = """#!{python} -S
import importlib, json, pathlib, sys
sys.path.insert(0, {tests!r})
from support.recorded import Unexpected
folder = pathlib.Path({folder!r})
with open(folder / "{name}.calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
state = json.loads((folder / "{name}.json").read_text())
try:
    code = importlib.import_module("support.recorded.{name}").main(sys.argv[1:], state)
except Unexpected as error:
    with open(folder / "unexpected", "a") as file:
        file.write("{name}: " + str(error) + "\\n")
    code = 64
temporary = folder / "{name}.json.new"
temporary.write_text(json.dumps(state))
temporary.replace(folder / "{name}.json")
sys.exit(code)
"""


def lives(pid: int) -> bool:
    """Whether there is such a process; the stand-ins have no children of their own, so none is a zombie of theirs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Unexpected(Exception):  # it is a finding about the caller
    """An argument that the real program would not understand, or that we should never give it."""


@dataclass(frozen=True)
class Recorded:
    """One program that was installed, and what it was asked."""

    folder: Path
    name: str

    @property
    def calls(self) -> list[list[str]]:
        """The arguments of every call, in order."""
        path = self.folder / f"{self.name}.calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def state(self) -> dict[str, Any]:
        """What its answers depend on."""
        return dict(json.loads((self.folder / f"{self.name}.json").read_text()))

    def change(self, **changes: Any) -> None:
        """Let it answer differently from the next call on."""
        temporary = self.folder / f"{self.name}.json.test"
        temporary.write_text(json.dumps({**self.state, **changes}))
        temporary.replace(self.folder / f"{self.name}.json")

    def check(self) -> None:
        """Fail if any program of this folder was called in a way that the real one would refuse."""
        unexpected = self.folder / "unexpected"
        assert not unexpected.exists(), unexpected.read_text()


def install(folder: Path, name: str, **state: Any) -> Recorded:
    """Put the program into `folder`, which the caller puts first on PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    tests = str(Path(__file__).parents[2])
    script = folder / name
    script.write_text(SCRIPT.format(python=sys.executable, tests=tests, folder=str(folder), name=name))
    script.chmod(0o755)
    (folder / f"{name}.json").write_text(json.dumps(state))
    return Recorded(folder, name)


def on_path(folder: Path) -> str:
    """PATH with `folder` first."""
    return f"{folder}{os.pathsep}{os.environ['PATH']}"
