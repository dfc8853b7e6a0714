"""Receiving requests from their stream: all of them, in their order, and never more than the daemon can hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from qlora_daemon import intake as module
from qlora_daemon.intake import PAGE, Intake
from qlora_daemon.mail import Asked, Message, QueueFailed
from qlora_engine.job.folder import Home
from qlora_worker.connection import Keys
from qlora_worker.messages import Answer
from qlora_worker.requests import FIRST, RECEIVED_AT_ONCE, Received, Requests, just_before, new_key
from support.server import valkey_server
from support.service import wait_until

Server = tuple[Redis, Keys, Home]


@pytest.fixture(scope="module")
def started() -> Iterator[Server]:
    with valkey_server() as server:
        yield server


@pytest.fixture
def server(started: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(module, "BLOCK_SECONDS", 0.2)  # it ends within that time
    started[0].flushall()
    return started


@pytest.fixture
def room_for_five(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SUBMISSIONS", 5)


def ask(server: Server, count: int, kind: str = "submit") -> list[str]:
    """So many requests on the stream; their keys."""
    connection, keys, _ = server
    asked = [new_key() for _ in range(count)]
    with connection.pipeline() as pipeline:
        for key in asked:
            pipeline.xadd(keys.requests, {"request": json.dumps({"key": key, "kind": kind, "payload": {}})})
        pipeline.execute()
    return asked


class Owner:
    """What the owner's thread is told, and its answers."""

    def __init__(self, server: Server) -> None:
        self.requests = Requests(*server[:2])
        self.messages: list[Message] = []
        self.intake = Intake(Requests(*server[:2]), self.messages.append)
        self.done = 0

    @property
    def received(self) -> list[Received]:
        return [message.received for message in self.messages if isinstance(message, Asked)]

    @property
    def keys(self) -> list[str]:
        return [received.key for received in self.received]

    def wait_for(self, count: int) -> None:
        wait_until(f"{count} requests are told", lambda: len(self.keys) >= count)

    def answer(self, count: int) -> None:
        """Answer the next ones, as the desk does."""
        answered = self.received[self.done : self.done + count]
        self.requests.answer((received, Answer.done(None, "")) for received in answered)
        self.intake.answered(received.entry for received in answered)
        self.done += count


@contextmanager
def receiving(server: Server) -> Iterator[Owner]:
    owner = Owner(server)
    owner.intake.start()
    try:
        yield owner
    finally:
        owner.intake.stop()
        owner.intake.join(10)
        assert not owner.intake.is_alive()


@pytest.mark.usefixtures("room_for_five")
def test_submissions_beyond_the_limit_wait_on_the_stream_and_come_in_their_order(server: Server) -> None:
    """Ten thousand jobs behind a slow disk are the stream's to hold, and none is lost, doubled or overtaken."""
    with receiving(server) as owner:
        asked = ask(server, 23)
        owner.wait_for(5)
        asked += ask(server, 4)  # received while others are left
        for _ in range(13):
            owner.wait_for(min(owner.done + 5, 27))
            assert len(owner.keys) <= owner.done + 5
            owner.answer(2)
        owner.wait_for(27)
        owner.answer(1)
        assert owner.keys == asked
        assert server[0].xlen(server[1].requests) == 0
        asked += ask(server, 1)  # and as ever after that
        owner.wait_for(28)
        assert owner.keys == asked


@pytest.mark.usefixtures("room_for_five")
def test_what_is_no_submission_does_not_wait_behind_them(server: Server) -> None:
    """A disk that is full keeps every submission waiting; the job that fills it must still be cancelled."""
    submitted = ask(server, 20)
    (cancel,) = ask(server, 1, "cancel")
    with receiving(server) as owner:
        owner.wait_for(6)
        assert owner.keys == [*submitted[:5], cancel]
        (late,) = ask(server, 1, "cancel")
        owner.wait_for(7)
        assert owner.keys[-1] == late
        owner.answer(7)
        owner.wait_for(12)
        assert owner.keys[7:] == submitted[5:10]


@pytest.mark.usefixtures("room_for_five")
def test_an_order_that_is_not_answered_yet_is_told_once(server: Server) -> None:
    """It lies among the submissions that are read again."""
    submitted = [*ask(server, 7)]
    (cancel,) = ask(server, 1, "cancel")
    submitted += ask(server, 2)
    with receiving(server) as owner:
        owner.wait_for(6)
        owner.requests.answer((one, Answer.done(None, "")) for one in owner.received[:5])
        owner.intake.answered(one.entry for one in owner.received[:5])
        owner.wait_for(10)
        assert owner.keys == [*submitted[:5], cancel, *submitted[5:]]


@pytest.mark.parametrize("count", [1, PAGE, 2 * RECEIVED_AT_ONCE + 1])
def test_all_that_an_earlier_daemon_left_unanswered_is_told(server: Server, count: int) -> None:
    """However many it had received when it was killed: whoever asked still waits."""
    asked = ask(server, count, "cancel")
    killed = Requests(*server[:2])
    killed.join()
    while killed.receive(0.01):
        pass
    with receiving(server) as owner:
        owner.wait_for(count)
        assert owner.keys == asked


def test_what_the_owner_forgot_to_answer_is_told_again(server: Server) -> None:
    """Its own connection failed where the stream's did not."""
    with receiving(server) as owner:
        asked = ask(server, 3)
        owner.wait_for(3)
        owner.answer(1)
        owner.intake.forgotten()
        wait_until("they are told again", lambda: [owner.keys.count(key) for key in asked] == [1, 2, 2])


def test_a_server_that_is_away_is_told_of_without_its_address(server: Server) -> None:
    """The owner puts it into the log."""
    away: list[Message] = []
    with Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0)) as nowhere:
        intake = Intake(Requests(nowhere, server[1]), away.append)
        intake.start()
        try:
            wait_until("it has noticed", lambda: away)
        finally:
            intake.stop()
            intake.join()
    assert away[0] == QueueFailed("no connection: Connection refused")


@pytest.mark.usefixtures("room_for_five")
def test_a_wiped_server_leaves_nothing_to_be_waited_for(server: Server) -> None:
    """The submissions that were left are gone with it, and their clients ask again."""
    with receiving(server) as owner:
        ask(server, 20)
        owner.wait_for(5)
        server[0].flushall()
        owner.answer(5)
        wait_until("it has noticed", lambda: any(isinstance(one, QueueFailed) for one in owner.messages))
        asked = ask(server, 2)
        owner.wait_for(7)
        assert owner.keys[5:] == asked


@pytest.mark.parametrize(
    ("entry", "before"), [("5-3", "5-2"), ("5-1", "5-0"), ("5-0", f"4-{2**64 - 1}"), ("1-0", f"0-{2**64 - 1}")]
)
def test_the_place_before_an_entry(entry: str, before: str) -> None:
    """What is read after it begins with the entry."""
    assert just_before(entry) == before


def test_reading_after_the_place_before_an_entry_begins_with_it(server: Server) -> None:
    """As the server sees it."""
    asked = ask(server, 5)
    requests = Requests(*server[:2])
    requests.join()
    received = requests.receive(1.0)
    page, after = requests.unanswered(just_before(received[2].entry), 2)
    assert [one.key for one in page] == asked[2:4]
    assert after == received[3].entry
    assert requests.unanswered(after, 2) == ([received[4]], None)
    assert requests.unanswered(FIRST, 5) == (received, received[4].entry)
