"""Sends messages about jobs to people: in a thread, by a process of its own, so that a slow server holds nobody up."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import NamedTuple

from qlora_daemon.mail import MessageEnded, Post
from qlora_daemon.notices import Notice, notice_of, text_of, title_of
from qlora_engine.job.errors import BadSetting
from qlora_engine.job.events import Event, parse_line
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.record import JobRecord
from qlora_engine.job.resolved import load_resolved
from qlora_engine.job.targets import read_targets
from qlora_engine.job.text import plain
from qlora_worker.settings import Settings

SENDER = "qlora_daemon.send_message"
SEND_SECONDS = 60.0  # for all addresses of one message together
PAUSES = (10.0, 60.0)  # seconds before a message that was not taken is tried again
EVENTS_BYTES = 2_000_000  # of a run's events, from the end: more than the last losses need


class Address(NamedTuple):
    """Where a message goes.

    Attributes:
        label: what it is called in events: a target's name, or what stands before `://`.
        url: as apprise takes it; a secret.
    """

    label: str
    url: str


class Messenger(threading.Thread):
    """A sink of events that has a message sent for some of them. Whatever goes wrong is said and harms nothing.

    Args:
        settings: say to whom, and about what.
        post: tells the owner what became of each message.
        pauses: seconds before each further attempt.
    """

    def __init__(self, settings: Settings, post: Post, *, pauses: Sequence[float] = PAUSES) -> None:
        super().__init__(name="messenger", daemon=True)
        self._home, self._post, self._pauses = settings.folders, post, pauses
        self._always = settings.notify.get_secret_value().split() if settings.notify else []
        self._kinds = frozenset(settings.notify_on.split())
        self._notices: SimpleQueue[Notice | None] = SimpleQueue()
        self._stopped = threading.Event()
        self._guard = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, event: Event) -> None:
        """Note what is worth a message; it is sent later."""
        notice = notice_of(event)
        if notice is not None and notice.kind in self._kinds:
            self._notices.put(notice)

    def stop(self) -> None:
        """Send nothing more, not even what waits."""
        self._stopped.set()
        self._notices.put(None)
        with self._guard:
            if self._process is not None:
                self._process.kill()

    def run(self) -> None:
        """One message after the other."""
        while (notice := self._notices.get()) is not None and not self._stopped.is_set():
            try:
                self._tell(notice, self._home.run(notice.job))
            except BadSetting as error:
                self._give_up(notice, f"{error.what} {error.remedy}")
            except (OSError, ValueError) as error:  # a run folder that was deleted, say
                self._give_up(notice, str(error))
            except Exception as error:  # noqa: BLE001  # a bug: without this thread nobody would be told anything
                self._give_up(notice, f"a bug, {type(error).__name__}: {error}")

    def _give_up(self, notice: Notice, why: str) -> None:
        self._post(MessageEnded(notice.job, notice.kind, (), plain(why, 300)))

    def _tell(self, notice: Notice, run: RunFolder) -> None:
        spec = load_resolved(run.spec).spec
        left = self._addresses([*self._always, *spec.notify])
        if not left:
            return
        name = JobRecord.load(run.state).name
        message = {"title": title_of(notice, name), "text": text_of(notice, _events(run))}
        labels, why = tuple(address.label for address in left), ""
        for pause in (0.0, *self._pauses):
            if self._stopped.wait(pause):
                return
            failed = [(one, why) for one, why in zip(left, self._send(message, left), strict=True) if why]
            left, why = [one for one, _ in failed], "; ".join(sorted({why for _, why in failed}))
            if not left:
                self._post(MessageEnded(notice.job, notice.kind, labels))
                return
        self._post(MessageEnded(notice.job, notice.kind, tuple(one.label for one in left), why))

    def _addresses(self, wanted: Sequence[str]) -> list[Address]:
        """Behind names, and those that the settings hold themselves; each once.

        Raises:
            BadSetting: the file of targets cannot be used, or has no such name.
        """
        names = [one for one in wanted if "://" not in one]
        found = [Address(one.partition("://")[0][:20], one) for one in wanted if "://" in one]
        targets = read_targets(self._home.targets) if names else {}
        for name in names:
            if name not in targets:
                raise BadSetting(
                    f"There is no target `{plain(name, 40)}`.",
                    where=str(self._home.targets),
                    remedy="Add it, or name another (docs/messages.md).",
                )
            found += [Address(name, url) for url in targets[name]]
        return list(dict.fromkeys(found))

    def _send(self, message: dict[str, str], addresses: Sequence[Address]) -> list[str]:
        """Try once; returns why not for each address, empty for those that took it: several may have one label."""
        request = json.dumps({**message, "addresses": addresses}).encode()
        with self._guard:
            if self._stopped.is_set():
                return ["the daemon stops"] * len(addresses)
            # Addresses go through the pipe: arguments can be seen by everybody.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", SENDER],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, process_group=0,
            )  # fmt: skip
        try:
            answer, _ = self._process.communicate(request, timeout=SEND_SECONDS)
            missing = f"the sending process ended with code {self._process.returncode}"
        except subprocess.TimeoutExpired:
            self._process.kill()
            answer, _ = self._process.communicate()  # with what was sent before the one that hangs
            missing = f"no answer within {SEND_SECONDS:g} s"
        finally:
            with self._guard:
                self._process = None
        said = [plain(line, 200) for line in answer.decode(errors="replace").split("\n")[:-1]][: len(addresses)]
        return said + [missing] * (len(addresses) - len(said))


def _events(run: RunFolder) -> list[Event]:
    with run.events.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - EVENTS_BYTES))
        lines = file.read().splitlines()
    return [event for line in lines if (event := parse_line(line)) is not None]
