"""A daemon for as long as a command needs one: started if none runs, and stopped at the end if it was started here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qlora_client.follow import LOOK_SECONDS, Tail
from qlora_client.signals import ended_by_signals
from qlora_engine.job.errors import DaemonUnavailable
from qlora_engine.job.folder import Home
from qlora_engine.job.lock import holder_of
from qlora_engine.job.text import plain

DAEMON = "qlora_daemon.cli"
START_SECONDS = 60.0
STOP_SECONDS = 115.0  # the daemon stops everything, a hung child included, within 110
# Looking at the lock takes it for an instant, which nobody should do often.
CHECK_SECONDS = 2.0


@dataclass(frozen=True)
class ServingDaemon:
    """A daemon that serves the home; `process` is None for one that ran already."""

    home: Home
    process: subprocess.Popen[bytes] | None
    output: Path

    def check(self) -> None:
        """Raise `DaemonUnavailable` if it has ended."""
        if self.process is not None:
            if self.process.poll() is not None:
                raise _ended(self.process.returncode, self.output)
        elif holder_of(self.home.daemon_lock) is None:
            raise DaemonUnavailable(
                "The daemon has ended.",
                where=str(self.home.path),
                remedy="Start it again with `qlorad`: it goes on where it was. `qlora logs` says why it ended.",
            )

    def watch(self) -> Callable[[], None]:
        """`check`, at most every `CHECK_SECONDS`, however often it is called."""
        due = time.monotonic()

        def checked() -> None:
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + CHECK_SECONDS
                self.check()

        return checked


@contextmanager
def serving(home: Home, say: Callable[[str], None]) -> Iterator[ServingDaemon]:
    """A daemon that serves this home.

    Args:
        home: of the daemon.
        say: is told what is done about it.

    Raises:
        DaemonUnavailable: it does not start.
    """
    home.make()
    output = home.logs / "demo-daemon.log"
    if (holder := holder_of(home.daemon_lock)) is not None:
        say(f"A daemon serves {home.path} already (process {plain(holder.get('pid', 'unknown'), 20)}).")
        yield ServingDaemon(home, None, output)
        return
    with ended_by_signals():
        process = _start(home, output)
        try:
            say(f"Started a daemon for {home.path} (process {process.pid}).")
            yield ServingDaemon(home, process, output)
        finally:
            _stop(process, say)


def _start(home: Home, output: Path) -> subprocess.Popen[bytes]:
    """Start a daemon and wait until it watches its folder."""
    with Tail(home.service_log, at_end=True) as log:
        with output.open("ab") as file:
            # A session of its own: Ctrl-C in the terminal must reach this program alone, which then stops it in order.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", DAEMON],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env=os.environ | {"QLORAD_HOME": str(home.path)},
            )
        try:
            _wait_until_ready(process, log, output)
        except BaseException:
            _stop(process, lambda _: None)
            raise
    return process


def _wait_until_ready(process: subprocess.Popen[bytes], log: Tail, output: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while not any(event["event"] == "inbox.watching" for event in log.events()):
        if process.poll() is not None:
            raise _ended(process.returncode, output)
        if time.monotonic() > end:
            raise DaemonUnavailable(
                f"The daemon was not ready within {START_SECONDS:g} seconds.",
                where=str(output),
                remedy="Look there, and into `qlora logs`; then try again.",
            )
        time.sleep(LOOK_SECONDS)


def _stop(process: subprocess.Popen[bytes], say: Callable[[str], None]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    say("Stopped the daemon that was started for this.")


def _ended(code: int, output: Path) -> DaemonUnavailable:
    try:
        last = output.read_bytes()[-4000:].decode(errors="replace").strip().splitlines()[-1:]
    except OSError:
        last = []
    return DaemonUnavailable(
        f"The daemon ended with code {code}{': ' + plain(last[0], 300) if last else ''}.",
        where=str(output),
        remedy="Look there, and into `qlora logs`; `qlorad` in a terminal shows the same.",
    )
