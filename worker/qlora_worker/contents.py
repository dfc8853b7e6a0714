"""What RQ keeps in Redis of one home, by name, so that it can be compared with the disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from redis import Redis

from qlora_worker.connection import Keys
from qlora_worker.queue import forget

MOST_NAMES = 10_000  # of one kind at one look; the next look finds the rest
_WORKERS = "rq:workers"
_WORKER = "rq:worker:"


@dataclass(frozen=True)
class Contents:
    """Names as RQ knows them.

    Attributes:
        waiting: in the queue's list.
        taken: in its intermediate list: a worker took them and has not finished with them.
        hashes: of attempts, wherever they are.
        workers: that have registered.
    """

    waiting: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    hashes: frozenset[str] = frozenset()
    workers: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """Every name that may stand for an attempt."""
        return frozenset(self.waiting) | frozenset(self.taken) | self.hashes


def read_contents(connection: Redis, keys: Keys) -> Contents:
    """What is there now. Nothing of another home on the same server is looked at.

    Raises:
        RedisError, OSError: Redis does not answer.
    """
    queue, prefix = f"rq:queue:{keys.queue}", f"rq:job:{keys.queue}-"
    hashes = (_text(name) for name in connection.scan_iter(f"{prefix}*", count=1000))
    attempts = (name.removeprefix("rq:job:").split(":")[0] for name in hashes)
    workers = (_text(key).removeprefix(_WORKER) for key in cast("set[bytes]", connection.smembers(_WORKERS)))
    return Contents(
        waiting=_names(connection, queue),
        taken=_names(connection, f"{queue}:intermediate"),
        hashes=frozenset(attempts),
        workers=frozenset(name for name in workers if name.startswith(f"{keys.queue}-")),
    )


def process_of_worker(name: str, keys: Keys) -> int | None:
    """The process id in a worker's name."""
    pid = name.removeprefix(f"{keys.queue}-").split("-")[0]
    return int(pid) if pid.isdigit() else None


def forget_attempts(connection: Redis, keys: Keys, names: Iterable[str]) -> None:
    """Take attempts out of Redis, wherever in it they are."""
    for name in names:
        forget(connection, keys, name)


def forget_worker(connection: Redis, keys: Keys, name: str) -> None:
    """Take out what a worker that lives no more had registered."""
    key = f"{_WORKER}{name}"
    with connection.pipeline() as pipeline:
        pipeline.srem(_WORKERS, key)
        pipeline.srem(f"{_WORKERS}:{keys.queue}", key)
        pipeline.delete(key, f"rq:executions:{name}")
        pipeline.execute()


def _names(connection: Redis, key: str) -> tuple[str, ...]:
    found = cast("list[bytes]", connection.lrange(key, 0, MOST_NAMES - 1))
    return tuple(_text(name) for name in found)


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
