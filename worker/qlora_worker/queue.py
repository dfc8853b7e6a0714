"""The one place that knows what lies in Redis: RQ's queue of at most one job, and the stream of requests."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import redis
from pydantic import ValidationError
from redis import Redis

from qlora_engine.job import lock
from qlora_engine.job.errors import DaemonUnavailable
from qlora_engine.job.folder import JOB_ID
from qlora_worker.connection import Keys, connect, keys_of
from qlora_worker.messages import Answer, Kind, Request, is_newer
from qlora_worker.settings import Settings

if TYPE_CHECKING:
    from rq import Queue

# What RQ would import and call, if our worker were any other.
NOT_A_FUNCTION = "qlorad.training"
MOST_REQUESTS = 10_000  # that wait for an answer
TTL_SECONDS = 3600  # what a crash leaves behind in Redis goes away by itself
MAX_NAMES = 1000  # in a list that holds one
GROUP = "daemon"
FIRST = "0"  # before every entry of a stream
RECEIVED_AT_ONCE = 500
ANSWER_TTL_SECONDS = 600
TROUBLE = (redis.exceptions.RedisError, OSError)


def new_key() -> str:
    """A key for a request, which makes it idempotent."""
    return uuid.uuid4().hex


def rq_id(keys: Keys, job_id: str, attempt: int) -> str:
    """RQ's name for one attempt of a job."""
    return f"{keys.queue}-{job_id}-{attempt}"


def read_rq_arguments(arguments: object) -> tuple[str, int]:
    """Job id and attempt out of what RQ delivered, which anybody with access to Redis could have written.

    Raises:
        ValueError: it is anything else.
    """
    match arguments:
        case [str(job_id), int(attempt)] if JOB_ID.fullmatch(job_id) and 0 < attempt < 10**9:
            return job_id, attempt
    raise ValueError("not a job id and an attempt")


class JobQueue:
    """RQ's queue, as the daemon uses it: one attempt of one job at a time, by id only."""

    def __init__(self, connection: Redis, keys: Keys) -> None:
        self._connection, self._keys = connection, keys

    def offer(self, job_id: str, attempt: int) -> None:
        """Give one attempt of a job to the worker.

        Raises:
            RedisError, OSError: Redis does not answer or refuses.
        """
        from rq.job import Job  # noqa: PLC0415  # RQ costs the clients memory and time that they need not spend
        from rq.serializers import JSONSerializer  # noqa: PLC0415

        job = Job.create(
            NOT_A_FUNCTION,
            args=[job_id, attempt],
            id=rq_id(self._keys, job_id, attempt),
            connection=self._connection,
            serializer=JSONSerializer,
            description=f"{job_id} {attempt}",
            timeout=-1,
            ttl=TTL_SECONDS,
            result_ttl=60,
            failure_ttl=60,
        )
        self._rq().enqueue_job(job)

    def withdraw(self, job_id: str, attempt: int) -> None:
        """Take an attempt back, wherever in Redis it is. Nothing happens to a training process."""
        forget(self._connection, self._keys, rq_id(self._keys, job_id, attempt))

    def clear(self) -> None:
        """Forget every attempt that RQ knows: the run folders say what is to be done."""
        queue = self._rq()
        pattern = f"rq:job:{self._keys.queue}-*"
        names = list(self._connection.scan_iter(pattern, count=1000))
        for name in [queue.key, queue.intermediate_queue_key, *names]:
            self._connection.delete(name)

    def waiting(self) -> list[tuple[str, int]]:
        """The attempts that no worker has taken yet."""
        return self._attempts(self._rq().key)

    def taken(self) -> list[tuple[str, int]]:
        """The attempts that a worker took and has not finished with, whether it lives or not."""
        return self._attempts(self._rq().intermediate_queue_key)

    def _attempts(self, key: str) -> list[tuple[str, int]]:
        found = []
        for raw in cast("list[bytes]", self._connection.lrange(key, 0, MAX_NAMES)):
            name = raw.decode(errors="replace")  # anybody with access to Redis could have written it
            job_id, _, attempt = name.removeprefix(f"{self._keys.queue}-").rpartition("-")
            if JOB_ID.fullmatch(job_id) and attempt.isdigit():
                found.append((job_id, int(attempt)))
        return found

    def _rq(self) -> Queue:
        from rq import Queue  # noqa: PLC0415
        from rq.serializers import JSONSerializer  # noqa: PLC0415

        return Queue(self._keys.queue, connection=self._connection, serializer=JSONSerializer)


def forget(connection: Redis, keys: Keys, name: str) -> None:
    """Delete everything that RQ keeps of one of its jobs.

    RQ's own `delete` reads executions first, and fails when Redis was wiped in between.
    """
    queue = f"rq:queue:{keys.queue}"
    with connection.pipeline() as pipeline:
        pipeline.lrem(queue, 0, name)
        pipeline.lrem(f"{queue}:intermediate", 0, name)
        pipeline.delete(
            f"rq:job:{name}", f"rq:job:{name}:dependents", f"rq:job:{name}:dependencies", f"rq:results:{name}"
        )
        pipeline.execute()


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
    """The stream of requests: clients ask, the daemon receives and answers."""

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
        except redis.exceptions.ResponseError as error:
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
            f"The daemon's queue does not answer ({type(error).__name__}).",
            remedy="If the daemon has just started, try again; otherwise `qlora status` and `qlora logs` say more.",
        ) from None
