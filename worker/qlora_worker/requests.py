"""The stream of requests in Redis: clients ask, the daemon receives and answers."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from pydantic import ValidationError
from redis import Redis
from redis.exceptions import ResponseError

from qlora_engine.job import lock
from qlora_engine.job.errors import DaemonUnavailable
from qlora_worker.connection import TROUBLE, Keys, connect, in_words, keys_of
from qlora_worker.messages import Answer, Kind, Request, is_newer
from qlora_worker.settings import Settings

MOST_REQUESTS = 10_000  # that wait for an answer
GROUP = "daemon"
FIRST = "0"  # before every entry of a stream
RECEIVED_AT_ONCE = 500
ANSWER_TTL_SECONDS = 600


def new_key() -> str:
    """A key for a request, which makes it idempotent."""
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Received:
    """A request as the daemon reads it; `request` is None when it cannot be understood."""

    entry: str
    key: str
    request: Request | None
    problem: str = ""

    @property
    def is_submission(self) -> bool:
        """Whether a job is submitted."""
        return self.request is not None and self.request.kind == "submit"


def just_before(entry: str) -> str:
    """The greatest id that a stream's entry before this one can have; ids are milliseconds and a number of 64 bits."""
    milliseconds, number = (int(part) for part in entry.split("-"))
    return f"{milliseconds}-{number - 1}" if number else f"{milliseconds - 1}-{2**64 - 1}"


class Requests:
    """The requests of one home."""

    def __init__(self, connection: Redis, keys: Keys) -> None:
        self._connection, self._keys = connection, keys

    # The client's side

    @classmethod
    def of(cls, settings: Settings) -> Requests:
        """The requests of the home of these settings, for a client.

        Raises:
            DaemonUnavailable: no daemon serves this home.
        """
        home = settings.folders
        if lock.holder_of(home.daemon_lock) is None:
            raise DaemonUnavailable(
                "The daemon does not run.",
                where=str(home.path),
                remedy="Start it with `qlorad`; `qlora doctor` says what it may lack.",
            )
        return cls(connect(settings, timeout=5.0, retries=5), keys_of(settings))

    def ask(self, kind: Kind, payload: Mapping[str, Any], timeout: float = 30.0, *, key: str | None = None) -> Answer:
        """Ask the daemon for something and wait for the answer.

        Args:
            kind: what to do.
            payload: what it needs; see `qlora_worker.messages`.
            timeout: seconds to wait.
            key: the key of an earlier request, to ask the same again without it being done twice.

        Raises:
            DaemonUnavailable: Redis or the daemon does not answer in time.
        """
        request = Request(key=key or new_key(), kind=kind, payload=dict(payload))
        with _unavailable():
            # What is cut off has waited behind thousands of others for longer than its client does.
            self._connection.xadd(
                self._keys.requests, {"request": request.model_dump_json()}, maxlen=MOST_REQUESTS, approximate=True
            )
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            with _unavailable():  # blocks for less than the connection's own time limit
                found = cast(
                    "list[bytes] | None",
                    self._connection.blpop([self._keys.answer(request.key)], timeout=max(0.05, min(left, 2.0))),
                )
            if found:
                return _read_answer(found[1])
        raise DaemonUnavailable(
            f"The daemon did not answer within {timeout:g} seconds.",
            where=f"request {request.key}",
            remedy="It may still do it: look with `qlora ls`, and at `qlora logs`.",
        )

    # The daemon's side

    def join(self) -> None:
        """Make the stream and its group of readers, unless they are there."""
        try:
            self._connection.xgroup_create(self._keys.requests, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def unanswered(self, after: str, count: int) -> tuple[list[Received], str | None]:
        """A page of what was received and not answered: left for later, or a daemon ended or Redis went away.

        Args:
            after: the entry before the page; `FIRST` for the first page.
            count: most requests of a page.

        Returns:
            The page, oldest first, and the entry that the next one is after, or None when this was the last.
        """
        page = self._read(after, count, block=None)
        return page, page[-1].entry if len(page) == count else None

    def receive(self, block_seconds: float) -> list[Received]:
        """Wait for new requests, at most `block_seconds`, which must be less than the connection's limit."""
        return self._read(">", RECEIVED_AT_ONCE, block=max(1, int(block_seconds * 1000)))

    def answer(self, answers: Iterable[tuple[Received, Answer]]) -> None:
        """Answer requests and take them off the stream, all at once."""
        with self._connection.pipeline() as pipeline:
            for received, answer in answers:
                pipeline.rpush(self._keys.answer(received.key), answer.model_dump_json())
                pipeline.expire(self._keys.answer(received.key), ANSWER_TTL_SECONDS)
                pipeline.xack(self._keys.requests, GROUP, received.entry)
                pipeline.xdel(self._keys.requests, received.entry)
            pipeline.execute()

    def _read(self, start: str, count: int, *, block: int | None) -> list[Received]:
        # One consumer name: the daemon's lock on its home leaves room for one reader.
        reply: Any = self._connection.xreadgroup(GROUP, GROUP, {self._keys.requests: start}, count=count, block=block)
        streams = reply.values() if isinstance(reply, dict) else [entries for _, entries in reply or []]
        return [_parse(entry) for entries in streams for entry in _flat(entries)]


def _flat(entries: Any) -> Iterator[Any]:  # redis-py's types for replies are unions of all
    """The entries of a stream; redis-py nests them once more in the newer protocol."""
    for entry in entries:
        if entry and isinstance(entry[0], list | tuple):
            yield from entry
        else:
            yield entry


def _parse(entry: Any) -> Received:
    name, fields = entry
    text = (fields or {}).get(b"request", b"")
    try:
        request = Request.model_validate_json(text)
    except ValidationError as error:
        why = "it comes from a newer client than this daemon" if is_newer(text) else _first(error)
        return Received(name.decode(), _key_in(text), None, why)
    return Received(name.decode(), request.key, request)


def _first(error: ValidationError) -> str:
    return str(error.errors(include_url=False)[0]["msg"])


def _key_in(text: bytes) -> str:
    try:
        key = json.loads(text)["key"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "unknown"
    return key if isinstance(key, str) and len(key) <= 64 else "unknown"


def _read_answer(text: bytes) -> Answer:
    try:
        return Answer.model_validate_json(text)
    except ValidationError:
        raise DaemonUnavailable(
            "The daemon's answer cannot be understood: it is of another version than this client.",
            remedy="It was asked all the same. Restart the daemon: both must be of one version (docs/upgrading.md).",
        ) from None


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except TROUBLE as error:
        raise DaemonUnavailable(
            f"The daemon's queue does not answer ({in_words(error)}).",
            remedy="If the daemon has just started, or is stopping, try again; otherwise `qlora status` and "
            "`qlora logs` say more.",
        ) from None
