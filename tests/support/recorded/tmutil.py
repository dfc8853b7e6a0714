"""`tmutil destinationinfo`, `addexclusion PATH` and `isexcluded PATH…` as tmutil(8) and people's quotes describe them.

`isexcluded` prints `[Excluded]` or `[Included]`, blanks and the path. Since macOS 10.14 some verbs ask for Full Disk
Access, in the words below, as users have reported them.

State: `destinations`, names of disks; `excluded`, paths that are left out with all that lies in them; `refuses`,
whether access to those is missing, `denied`, to the destinations; `hangs`, seconds that it takes to answer.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from support.recorded import Unexpected

REFUSAL = (
    "tmutil: {verb} requires Full Disk Access privileges.\n"
    "To allow this operation, select Full Disk Access in the Privacy\n"
    "tab of the Security & Privacy preference pane, and add Terminal\n"
    "to the list of applications which are allowed Full Disk Access.\n"
)


def main(arguments: list[str], state: dict[str, Any]) -> int:
    time.sleep(state.get("hangs", 0.0))
    match arguments:
        case ["destinationinfo"]:
            return _destinations(state)
        case ["isexcluded", *paths] if paths:
            return _each(paths, "isexcluded", state)
        case ["addexclusion", path]:
            return _each([path], "addexclusion", state)
    raise Unexpected(f"tmutil {arguments}: paths and no option; -p needs root")


def _each(paths: list[str], verb: str, state: dict[str, Any]) -> int:
    if relative := [path for path in paths if not path.startswith("/")]:
        raise Unexpected(f"tmutil {verb} {relative}: a path that depends on the working directory")
    if state.get("refuses"):
        return _refuse(verb)
    excluded = state.setdefault("excluded", [])
    for path in paths:
        if not Path(path).exists():
            sys.stderr.write(f"{path}: No such file or directory\n")
            return 66
        if verb == "isexcluded":
            inside = any(Path(path).is_relative_to(folder) for folder in excluded)
            sys.stdout.write(f"[{'Excluded' if inside else 'Included'}]    {path}\n")
        elif path not in excluded:
            excluded.append(path)
    return 0


def _destinations(state: dict[str, Any]) -> int:
    if state.get("denied"):
        return _refuse("destinationinfo")
    if not state["destinations"]:
        sys.stdout.write("tmutil: No destinations configured.\n")
    for name in state["destinations"]:
        sys.stdout.write(
            f"{'=' * 52}\nName          : {name}\nKind          : Local\nMount Point   : /Volumes/{name}\n"
        )
    return 0


def _refuse(verb: str) -> int:
    sys.stderr.write(REFUSAL.format(verb=verb))
    return 80
