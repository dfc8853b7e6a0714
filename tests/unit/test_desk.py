"""Answering what clients ask, whatever happens in between."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import pytest
import redis

from qlora_daemon.admission import Admission
from qlora_daemon.desk import Desk
from qlora_daemon.orders import Orders
from qlora_daemon.queue_health import QueueHealth
from qlora_engine.job.events import Event, EventLog
from qlora_worker.messages import Answer, Kind, Request
from qlora_worker.requests import Received, Requests

CANCEL = Received("7-0", "a" * 32, Request(key="a" * 32, kind="cancel", payload={}))


class Raising:
    """Orders and admission that fail in one way."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def carry_out(self, *_: object) -> Answer:
        raise self.error

    submit = carry_out


class Stream:
    """What was answered; away, if it is to be."""

    def __init__(self, *, away: bool) -> None:
        self.away = away
        self.answers: list[tuple[Received, Answer]] = []

    def answer(self, answers: Iterable[tuple[Received, Answer]]) -> None:
        if self.away:
            raise redis.exceptions.TimeoutError("too slow")
        self.answers += answers


class Health:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def failed(self, reason: str) -> None:
        self.reasons.append(reason)


class Office:
    """A desk, and what it says to others."""

    def __init__(self, *, away: bool = False) -> None:
        self.stream, self.health = Stream(away=away), Health()
        self.answered: list[str] = []
        self.forgotten = 0
        self.events: list[Event] = []
        self.desk = Desk(
            cast("Requests", self.stream),
            cast("QueueHealth", self.health),
            EventLog([self.events.append]),
            answered=self.answered.extend,
            forgotten=self._forget,
        )

    def _forget(self) -> None:
        self.forgotten += 1

    def carry_out(self, received: Received, error: Exception) -> None:
        raising: Any = Raising(error)
        self.desk.carry_out(received, cast("Admission", raising), cast("Orders", raising))
        self.desk.send()


@pytest.mark.parametrize("kind", ["cancel", "submit"])
def test_a_bug_is_an_answer_too(kind: Kind) -> None:
    """A request without one keeps its place among those that may be open, and whoever asked waits half a minute."""
    office = Office()
    payload = {"text": "", "name": "a.yaml", "base": "/"}
    received = Received("7-0", "a" * 32, Request(key="a" * 32, kind=kind, payload=payload))
    office.carry_out(received, KeyError("state"))
    ((answered, answer),) = office.stream.answers
    assert (answered, answer.ok) == (received, False)
    assert "a bug" in (answer.what or "")
    assert "report it" in (answer.remedy or "")
    assert [event["error"] for event in office.events if event["event"] == "internal.error"] == ["KeyError: 'state'"]


def test_who_receives_learns_what_was_answered() -> None:
    """It has room for others."""
    office = Office()
    office.carry_out(CANCEL, OSError(28, "No space left on device"))
    assert (office.answered, office.forgotten, office.health.reasons) == (["7-0"], 0, [])
    assert not office.stream.answers[0][1].ok


def test_answers_that_cannot_be_sent_are_asked_for_again() -> None:
    """They are kept nowhere: the requests lie on the stream, and to do them again changes nothing."""
    office = Office(away=True)
    office.carry_out(CANCEL, OSError(28, "No space left on device"))
    assert (office.answered, office.forgotten) == ([], 1)
    assert office.health.reasons == ["no answer in time"]
    office.stream.away = False
    office.desk.send()
    assert office.stream.answers == []
