"""What launchd does for one job: starts the program of a plist and, with KeepAlive, starts it again when it ends.

`python launchd_job.py PLIST SAID`: SIGTERM ends the program, SIGKILL after its ExitTimeOut, and then this; SIGUSR1
starts it without the usual pause. SAID is JSON: `pid` while it runs, `runs`, `last` (exit code, or -N for signal N).
"""

from __future__ import annotations

import json
import os
import plistlib
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event
from typing import Any

THROTTLE_SECONDS = 10.0


def said(path: Path) -> dict[str, Any]:
    """What it last said."""
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}


def main(plist: Path, path: Path) -> None:
    keys = plistlib.loads(plist.read_bytes())
    stopping, kicked = Event(), Event()
    signal.signal(signal.SIGUSR1, lambda *_: kicked.set())
    process: subprocess.Popen[bytes] | None = None
    facts: dict[str, Any] = {"runs": 0}

    def stop(*_: object) -> None:
        stopping.set()
        kicked.set()
        if process is not None:
            process.terminate()

    signal.signal(signal.SIGTERM, stop)
    while not stopping.is_set():
        kicked.clear()
        process = _start(keys)
        facts |= {"runs": facts["runs"] + 1, "pid": process.pid}
        _say(path, facts)
        code = _wait(process, stopping, keys["ExitTimeOut"])
        del facts["pid"]
        _say(path, facts | {"last": code})
        facts["last"] = code
        if not keys["KeepAlive"]:
            stopping.wait()
        kicked.wait(THROTTLE_SECONDS)


def _wait(process: subprocess.Popen[bytes], stopping: Event, patience: float) -> int:
    while not stopping.is_set():
        try:
            return process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _start(keys: dict[str, Any]) -> subprocess.Popen[bytes]:
    bare = {name: os.environ[name] for name in ("HOME", "USER", "LOGNAME", "TMPDIR") if name in os.environ}
    with Path(keys["StandardErrorPath"]).open("ab") as output:
        return subprocess.Popen(
            keys["ProgramArguments"], cwd=keys["WorkingDirectory"], env={**bare, **keys["EnvironmentVariables"]},
            umask=keys["Umask"], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip


def _say(path: Path, facts: dict[str, Any]) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(facts))
    temporary.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
