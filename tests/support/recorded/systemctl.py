"""systemctl as far as qlorad uses it, for units that lie in one folder; programs are really started.

The state: `files`, the folder of the units; `bus`, whether a systemd of the user answers; `units` by name.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from support.recorded import Unexpected, lives

SHOWN = ["LoadState", "ActiveState", "MainPID", "ExecMainCode", "ExecMainStatus"]


def main(arguments: list[str], state: dict[str, Any]) -> int:
    if arguments[:2] != ["--user", "--no-pager"]:
        raise Unexpected(f"{arguments}: of the user, and without a pager that would wait for a key")
    if not state["bus"]:
        print("Failed to connect to bus: No medium found", file=sys.stderr)
        return 1
    verb, *rest = arguments[2:]
    if verb == "daemon-reload":
        state["units"] = {
            path.name: state["units"].get(path.name, {}) for path in Path(state["files"]).glob("*.service")
        }
        return 0
    now = "--now" in rest
    names = [argument for argument in rest if not argument.startswith("--")]
    if len(names) != 1 or not names[0].endswith(".service"):
        raise Unexpected(f"{verb} {rest}")
    return _act(verb, names[0], rest, state, now=now)


def _act(verb: str, name: str, rest: list[str], state: dict[str, Any], *, now: bool) -> int:
    unit = state["units"].get(name)
    if verb == "show":
        if rest[1:] != [f"--property={','.join(SHOWN)}"]:
            raise Unexpected(f"show {rest}")
        return _show(unit)
    if unit is None:
        print(f"Failed to {verb} {name}: Unit {name} not found.", file=sys.stderr)
        return 5
    if verb in ("stop", "restart") or (verb == "disable" and now):
        _stop(unit)
    elif verb not in ("enable", "start"):
        raise Unexpected(verb)
    if verb in ("start", "restart") and not _is_running(unit):
        unit |= {"pid": _start(Path(state["files"]) / name), "code": "0", "status": 0}
    return 0


def _show(unit: dict[str, Any] | None) -> int:
    values = {
        "LoadState": "not-found" if unit is None else "loaded",
        "ActiveState": "active" if unit and _is_running(unit) else "inactive",
        "MainPID": unit["pid"] if unit and _is_running(unit) else 0,
        "ExecMainCode": (unit or {}).get("code", "0"),
        "ExecMainStatus": (unit or {}).get("status", 0),
    }
    for name, value in sorted(values.items()):  # in an order of its own, as systemd does
        print(f"{name}={value}")
    return 0


def _is_running(unit: dict[str, Any]) -> bool:
    return "pid" in unit and lives(unit["pid"])


def _stop(unit: dict[str, Any]) -> None:
    if _is_running(unit):
        os.kill(unit["pid"], signal.SIGTERM)
        while lives(unit["pid"]):
            time.sleep(0.01)
    unit |= {"code": "1", "status": 0}


def _start(path: Path) -> int:
    lines = [line.split("=", 1) for line in path.read_text().splitlines() if "=" in line]
    single = dict(lines)
    environment = dict(shlex.split(value)[0].split("=", 1) for key, value in lines if key == "Environment")
    process = subprocess.Popen(
        shlex.split(single["ExecStart"]), cwd=single["WorkingDirectory"],
        env={"HOME": os.environ["HOME"], **environment}, umask=int(single["UMask"], 8),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    return process.pid
