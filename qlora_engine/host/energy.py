"""What a Mac does by itself to save energy: `pmset -g custom`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping

from qlora_engine.host.program import run

SECONDS = 2.0
PLUGGED = "AC Power"
# A heading without a leading blank and with a colon; below it a name, of words even, blanks and a number or a path.
_HEADING = re.compile(r"^(\S.*):\s*$")
_SETTING = re.compile(r"^\s+(\S.*?)\s+(\d+)\b")

Energy = Mapping[str, Mapping[str, int]]


def energy() -> Energy | None:
    """Settings by source of power and name, such as `AC Power` and `sleep`; None where there is no pmset.

    Raises:
        ProgramFailed: pmset does not answer.
    """
    if not shutil.which("pmset"):
        return None
    return from_pmset(run(["pmset", "-g", "custom"], timeout=SECONDS).out)


def from_pmset(text: str) -> Energy:
    """Out of what `pmset -g custom` prints; a machine has only those settings that mean something on it."""
    found: dict[str, dict[str, int]] = {}
    section: dict[str, int] = {}
    for line in text.splitlines():
        if heading := _HEADING.match(line):
            section = found.setdefault(heading[1], {})
        elif setting := _SETTING.match(line):
            section[setting[1]] = int(setting[2])
    return found
