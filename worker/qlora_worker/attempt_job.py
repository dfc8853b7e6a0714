"""What the worker reads of one of RQ's jobs: a job id and an attempt, and nothing else that lies in Redis."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError
from rq.exceptions import NoSuchJobError
from rq.job import Job

from qlora_worker.queue import read_rq_arguments

MAX_BYTES = 1000  # of the arguments as JSON; ours take about two hundred


class AttemptJob(Job):
    """RQ's job, without what RQ would take from its hash: callbacks, webhooks, results, meta, dates, dependencies.

    RQ imports the names of callbacks, calls webhooks, decompresses and parses; anybody who can write to Redis could
    have put them there.

    Attributes:
        attempt: job id and attempt; None if it is not a job of ours.
    """

    attempt: tuple[str, int] | None = None

    @classmethod
    def fetch(cls, id: str, connection: Redis | None = None, serializer: Any = None) -> Job:  # noqa: A002  # RQ's
        """The job of this name. Raises `NoSuchJobError` where there is none, or what is there is no job."""
        try:
            return super().fetch(id, connection=connection, serializer=serializer)
        except (ValueError, TypeError, ResponseError):
            raise NoSuchJobError(repr(id)) from None

    def restore(self, raw_data: Mapping[bytes, bytes]) -> None:
        """Take the arguments, if they are ours."""
        self.attempt = _read(raw_data.get(b"data", b""))


def _read(data: bytes) -> tuple[str, int] | None:
    try:
        text = zlib.decompressobj().decompress(data, MAX_BYTES)  # RQ's own would follow a bomb to its end
        _function, _instance, arguments, _keywords = json.loads(text)
        return read_rq_arguments(arguments)
    except (ValueError, TypeError, RecursionError, zlib.error):
        return None
