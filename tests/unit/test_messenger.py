"""Messages, sent by the real sending process to a real server: taken, refused, never answered; and secrets kept."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from qlora_daemon import messenger as module
from qlora_daemon.mail import Message, MessageEnded
from qlora_daemon.messenger import Messenger
from qlora_daemon.notices import Notice, text_of
from qlora_engine.job.events import Event
from qlora_engine.job.folder import Home
from qlora_engine.job.record import JobRecord
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.spec import JobSpec
from qlora_worker.settings import Settings

JOB = "20261123-080000-poems"
DONE: Event = {"ts": "", "level": "info", "event": "job.state", "job": JOB, "to": "done", "reason": ""}


class Server(ThreadingHTTPServer):
    """Takes messages, or answers with an error so often first, or never."""

    def __init__(self, *, refuse: int = 0, hang: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.refuse, self.hang, self.ended = refuse, hang, threading.Event()
        self.taken: list[dict[str, Any]] = []
        self.asked = 0

    def address(self, path: str = "") -> str:
        return f"json://127.0.0.1:{self.server_address[1]}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.asked += 1
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.hang:
            self.server.ended.wait(30)
        refused = self.server.asked <= self.server.refuse
        if not refused:
            self.server.taken.append(content)
        self.send_response(500 if refused else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def serving(**how: Any) -> Iterator[Server]:
    server = Server(**how)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("QLORAD_HOME", str(tmp_path))
    home = Home(tmp_path)
    home.run(JOB).path.mkdir(parents=True)
    spec(home)
    JobRecord.new(JOB, "poems").store(home.run(JOB).state)
    report = {"ts": "", "level": "info", "event": "training.report", "job": JOB, "step": 20, "loss": 1.5}
    home.run(JOB).events.write_text(json.dumps(report) + "\n")
    return home


def spec(home: Home, **keys: Any) -> None:
    job = ResolvedJob(spec=JobSpec(**keys), model_path=None, data={})
    home.run(JOB).spec.write_text(job.model_dump_json())


def told(*events: Event, seconds: float = 30.0, pauses: tuple[float, ...] = (0.0, 0.0)) -> MessageEnded:
    """What becomes of the message about the last of these."""
    mail: SimpleQueue[Message] = SimpleQueue()
    messenger = Messenger(Settings.read(), mail.put, pauses=pauses)
    messenger.start()
    for event in events:
        messenger(event)
    ended = mail.get(timeout=seconds)
    messenger.stop()
    messenger.join(10)
    assert not messenger.is_alive()
    assert mail.empty()
    assert isinstance(ended, MessageEnded)
    return ended


def test_a_message_arrives_with_the_losses_and_the_event_names_no_address(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address of the settings holds the key to a service."""
    with serving() as server:
        monkeypatch.setenv("QLORAD_NOTIFY", server.address("s3cret"))
        assert told(DONE) == MessageEnded(JOB, "done", ("json",))
        (message,) = server.taken
    assert message["title"] == "poems: done"
    assert "Loss: 1.5 at step 20" in message["message"]


def test_a_job_tells_its_own_targets_beside_those_of_the_settings(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who watches one job need not hear of all; who is named twice is told once."""
    with serving() as server:
        home.targets.write_text(f'phone = "{server.address("a")}"\nmail = "{server.address("b")}"\n')
        home.targets.chmod(0o600)
        spec(home, notify=["phone", "mail"])
        monkeypatch.setenv("QLORAD_NOTIFY", "phone")
        assert told(DONE) == MessageEnded(JOB, "done", ("phone", "mail"))
        assert len(server.taken) == 2


def test_nobody_who_is_to_be_told_means_no_message(home: Home) -> None:
    """And no process is started for it."""
    mail: SimpleQueue[Message] = SimpleQueue()
    messenger = Messenger(Settings.read(), mail.put)
    messenger.start()
    messenger(DONE)
    messenger._notices.put(None)
    messenger.join(10)
    assert not messenger.is_alive()
    assert mail.empty()


def test_what_is_not_taken_is_tried_again_and_then_given_up(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that restarts costs no message, one that is gone costs one line."""
    with serving(refuse=2) as server:
        monkeypatch.setenv("QLORAD_NOTIFY", server.address())
        assert told(DONE) == MessageEnded(JOB, "done", ("json",))
        assert (server.asked, len(server.taken)) == (3, 1)
    with serving(refuse=3) as server:
        monkeypatch.setenv("QLORAD_NOTIFY", server.address("s3cret"))
        ended = told(DONE)
        assert ended.why_not == "the service did not take it, or was not reached"
        assert "s3cret" not in str(ended)


@pytest.mark.parametrize("hang", [False, True])
def test_who_has_it_is_not_told_again_since_another_of_the_same_name_is_down(
    home: Home, monkeypatch: pytest.MonkeyPatch, hang: bool
) -> None:
    """A team whose mail server is down would read the same message in its channel three times."""
    monkeypatch.setattr(module, "SEND_SECONDS", 6.0)
    with serving() as channel, serving(refuse=3, hang=hang) as mail:
        home.targets.write_text(f'team = ["{channel.address()}", "{mail.address("?rto=20")}"]\n')
        home.targets.chmod(0o600)
        monkeypatch.setenv("QLORAD_NOTIFY", "team")
        ended = told(DONE, pauses=() if hang else (0.0, 0.0))
        assert (ended.to, bool(ended.why_not)) == (("team",), True)
        assert (len(channel.taken), len(mail.taken)) == (1, 0)


def test_one_that_never_answers_is_given_up(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next message is not to wait for it for ever."""
    monkeypatch.setattr(module, "SEND_SECONDS", 2.0)
    with serving(hang=True) as server:
        monkeypatch.setenv("QLORAD_NOTIFY", server.address("?rto=20"))
        assert told(DONE, pauses=()).why_not == "no answer within 2 s"


def test_a_stop_does_not_wait_for_a_server(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that is asked to stop has other things to do."""
    with serving(hang=True) as server:
        monkeypatch.setenv("QLORAD_NOTIFY", server.address("?rto=20"))
        messenger = Messenger(Settings.read(), lambda _: None, pauses=())
        messenger.start()
        messenger(DONE)
        end = time.monotonic() + 20
        while not server.asked and time.monotonic() < end:
            time.sleep(0.02)
        began = time.monotonic()
        messenger.stop()
        messenger.join(10)
        assert not messenger.is_alive()
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("phone", "There is no target `phone`."),
        ("nosuch://s3cret", "apprise knows no such address"),
    ],
)
def test_whom_nobody_knows_is_said_once(home: Home, monkeypatch: pytest.MonkeyPatch, setting: str, why: str) -> None:
    """A typing error in a setting shows in the log, without the secret beside it."""
    monkeypatch.setenv("QLORAD_NOTIFY", setting)
    ended = told(DONE, pauses=())
    assert why in ended.why_not
    assert "s3cret" not in str(ended)


def test_only_what_was_chosen_is_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some want to hear of failures alone."""
    with serving() as server:
        monkeypatch.setenv("QLORAD_NOTIFY", server.address())
        monkeypatch.setenv("QLORAD_NOTIFY_ON", "failed")
        assert told(DONE, DONE | {"to": "failed", "reason": "memory"}).kind == "failed"
        assert [message["title"] for message in server.taken] == ["poems: failed"]


def test_a_run_that_was_deleted_is_no_trouble(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """`qlora clean` may be faster."""
    monkeypatch.setenv("QLORAD_NOTIFY", "json://127.0.0.1/")
    home.run(JOB).spec.unlink()
    assert "No such file" in told(DONE).why_not


def test_an_error_that_nobody_foresaw_is_said_and_the_next_message_is_sent(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that ended would keep silent about every job until the daemon starts again."""

    def stumbling(notice: Notice, events: Iterable[Event]) -> str:
        if notice.kind == "failed":
            raise TypeError("no such \x1b[31mformat")
        return text_of(notice, events)

    monkeypatch.setattr(module, "text_of", stumbling)
    mail: SimpleQueue[Message] = SimpleQueue()
    with serving() as server:
        monkeypatch.setenv("QLORAD_NOTIFY", server.address())
        messenger = Messenger(Settings.read(), mail.put, pauses=())
        messenger.start()
        messenger(DONE | {"to": "failed", "reason": "memory"})
        assert mail.get(timeout=30) == MessageEnded(JOB, "failed", (), "a bug, TypeError: no such format")
        messenger(DONE)
        assert mail.get(timeout=30) == MessageEnded(JOB, "done", ("json",))
        messenger.stop()
        messenger.join(10)
    assert [message["title"] for message in server.taken] == ["poems: done"]
