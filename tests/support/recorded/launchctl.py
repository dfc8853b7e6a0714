"""launchctl as far as qlorad uses it: its arguments, its exit codes, and the time that a `bootout` takes.

Written down from Apple's launchctl(1) and from what people report of it; it was compared with no Mac. The state:

    domains   those that exist: without `gui/UID` nobody is logged in
    disabled  services that a person has disabled
    services  by label: domain, file, and the process of `launchd_job` that stands for launchd

Programs are really started, with launchd's bare environment, and started again when they end.
"""

from __future__ import annotations

import os
import plistlib
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from support.recorded import Unexpected, launchd_job, lives

UID = os.getuid()


def main(arguments: list[str], state: dict[str, Any]) -> int:
    if not arguments:
        raise Unexpected("no subcommand")
    verb, *rest = arguments
    verbs = {"print": _print, "bootstrap": _bootstrap, "bootout": _bootout, "enable": _enable, "kickstart": _kickstart,
             "kill": _kill}  # fmt: skip
    if verb not in verbs:
        raise Unexpected(f"subcommand {verb}")
    return verbs[verb](rest, state)


def _print(arguments: list[str], state: dict[str, Any]) -> int:
    domain, label = _target(arguments, 1)
    if domain not in state["domains"]:
        return _fail(125, f"Could not find domain for {domain}")
    job = _job(state, domain, label)
    if job is None:
        return _fail(113, f'Bad request.\nCould not find service "{label}" in domain for {domain}')
    said = launchd_job.said(Path(job["said"]))
    lines = [
        f"{domain}/{label} = {{",
        f"\tactive count = {int('pid' in said)}",
        f"\tpath = {job['file']}",
        "\ttype = LaunchAgent",
        f"\tstate = {'running' if 'pid' in said else 'spawn scheduled'}",
        "",
        "\tinherited environment = {",
        "\t\tSSH_AUTH_SOCK => /private/tmp/com.apple.launchd.x/Listeners",
        "\t}",
        "\tendpoints = {",
        '\t\t"io.example" = {',
        "\t\t\tstate = active",
        "\t\t\tpid = 1",
        "\t\t}",
        "\t}",
        "\texit timeout = 120",
        f"\truns = {said.get('runs', 0)}",
        *([f"\tpid = {said['pid']}"] if "pid" in said else []),
        *_last_exit(said.get("last")),
        "}",
    ]
    print("\n".join(lines))
    return 0


def _last_exit(last: int | None) -> list[str]:
    if last is None:
        return ["\tlast exit code = (never exited)"]
    if last < 0:
        return [f"\tlast terminating signal = {signal.strsignal(-last)}: {-last}"]
    return [f"\tlast exit code = {last}"]


def _bootstrap(arguments: list[str], state: dict[str, Any]) -> int:
    if len(arguments) != 2:
        raise Unexpected(f"bootstrap {arguments}")
    domain, file = arguments[0], Path(arguments[1])
    if domain.split("/")[0] not in ("gui", "user", "system"):
        raise Unexpected(f"domain {domain}")
    if not file.is_absolute():
        raise Unexpected(f"bootstrap of a relative path {file}")
    if domain not in state["domains"]:
        return _fail(125, "Bootstrap failed: 125: Domain does not support specified action")
    try:
        keys = plistlib.loads(file.read_bytes())
        label = keys["Label"]
    except (OSError, ValueError, KeyError):
        return _fail(5, "Bootstrap failed: 5: Input/output error")
    info = file.stat()
    writable = info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    busy = any(_job(state, other, label) for other in state["domains"])
    if busy or writable or info.st_uid != UID or label in state.get("disabled", []):
        return _fail(5, "Bootstrap failed: 5: Input/output error\nTry again as root to learn more.")
    said = file.with_name(f".{label}.said")
    said.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, launchd_job.__file__, str(file), str(said)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while not said.exists() and process.poll() is None:
        time.sleep(0.01)  # the real one has started it when the command returns
    state["services"][label] = {"domain": domain, "file": str(file), "said": str(said), "launchd": process.pid}
    return 0


def _bootout(arguments: list[str], state: dict[str, Any]) -> int:
    """Returns before the service has ended, as the real one does where that takes a while."""
    domain, label = _target(arguments, 1)
    job = _job(state, domain, label)
    if job is None:
        return _fail(3, "Boot-out failed: 3: No such process")
    os.kill(job["launchd"], signal.SIGTERM)
    return _fail(36, "Boot-out failed: 36: Operation now in progress")


def _enable(arguments: list[str], state: dict[str, Any]) -> int:
    _, label = _target(arguments, 1)
    state["disabled"] = [other for other in state.get("disabled", []) if other != label]
    return 0


def _kickstart(arguments: list[str], state: dict[str, Any]) -> int:
    domain, label = _target(arguments, 1)
    job = _job(state, domain, label)
    if job is None:
        return _fail(113, f'Could not find service "{label}" in domain for {domain}')
    os.kill(job["launchd"], signal.SIGUSR1)
    return 0


def _kill(arguments: list[str], state: dict[str, Any]) -> int:
    if not arguments or arguments[0] != "SIGTERM":
        raise Unexpected(f"kill {arguments}: another signal would cost the checkpoint")
    domain, label = _target(arguments[1:], 1)
    job = _job(state, domain, label)
    said = launchd_job.said(Path(job["said"])) if job else {}
    if "pid" not in said:
        return _fail(3, "Could not signal service: 3: No such process")
    os.kill(said["pid"], signal.SIGTERM)
    return 0


def _target(arguments: list[str], count: int) -> tuple[str, str]:
    if len(arguments) != count:
        raise Unexpected(f"{arguments} instead of one target")
    domain, _, label = arguments[0].rpartition("/")
    if domain not in (f"gui/{UID}", f"user/{UID}", "system") or not label:
        raise Unexpected(f"target {arguments[0]}")
    return domain, label


def _job(state: dict[str, Any], domain: str, label: str) -> dict[str, Any] | None:
    job = state["services"].get(label)
    if job is None or job["domain"] != domain:
        return None
    if not lives(job["launchd"]):
        del state["services"][label]
        return None
    return dict(job)


def _fail(code: int, text: str) -> int:
    print(text, file=sys.stderr)
    return code
