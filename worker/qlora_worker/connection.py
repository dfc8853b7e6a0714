"""Reaching Redis: the embedded server's socket or the one that a setting names, and the keys of one home."""

from __future__ import annotations

import os
import secrets
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import AskError, AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout
from redis.retry import Retry

from qlora_engine.job import durable
from qlora_engine.job.errors import BadSetting
from qlora_engine.job.folder import Home
from qlora_engine.job.text import plain
from qlora_worker.settings import Settings

TROUBLE = (RedisError, OSError)  # what is raised where Redis does not answer or refuses
SOCKET_BYTES = 103  # sun_path holds 104 bytes with its final NUL on macOS, 108 on Linux


@dataclass(frozen=True)
class Keys:
    """The names that one home uses, so that two homes on one Redis never meet."""

    home_id: str

    @property
    def queue(self) -> str:
        """RQ's queue."""
        return f"qlorad-{self.home_id}"

    @property
    def requests(self) -> str:
        """The stream of requests."""
        return f"qlorad:{self.home_id}:requests"

    def answer(self, key: str) -> str:
        """The list that receives the answer to one request."""
        return f"qlorad:{self.home_id}:answer:{key}"


def connect(settings: Settings, *, timeout: float, retries: int = 0) -> Redis:
    """A client for the server that the settings name. Nothing is sent yet.

    Args:
        settings: where the server is.
        timeout: seconds that one command may take; a command that blocks must ask for less.
        retries: how often a command is sent again when the connection breaks, with growing pauses of at
            most 2 seconds; 0 reports the first failure.

    Raises:
        BadSetting: the socket's path is longer than the system allows, or the address has options that there are not.
    """
    retry = Retry(ExponentialBackoff(cap=2.0, base=0.05) if retries else NoBackoff(), retries)
    if settings.redis_url is not None:
        try:
            return Redis.from_url(
                settings.redis_url.get_secret_value(),
                socket_timeout=timeout,
                socket_connect_timeout=min(timeout, 5.0),
                retry=retry,
            )
        except (ValueError, TypeError):  # its text may hold the address, and that a password
            raise BadSetting(
                "The options behind the `?` of QLORAD_REDIS_URL cannot be used.",
                where="QLORAD_REDIS_URL",
                remedy="Remove them, or see redis-py's Redis.from_url for those that there are.",
            ) from None
    return Redis(
        unix_socket_path=str(check_socket(settings.folders.socket)),
        socket_timeout=timeout,
        socket_connect_timeout=min(timeout, 5.0),
        retry=retry,
    )


def in_words(error: Exception) -> str:
    """What is wrong with the server, without its address, which the library's own text holds.

    Args:
        error: of the library, or of the system.
    """
    if isinstance(error, AuthenticationError | NoPermissionError):
        return "it refuses the user or the password"
    if isinstance(error, AskError):  # its text is where another server is
        return "it is one of a cluster"
    if isinstance(error, ResponseError):
        return plain(error, 120).rstrip(".")
    if isinstance(error, RedisTimeout | TimeoutError):
        return "no answer in time"
    return _no_connection(error if isinstance(error, OSError) else error.__context__)


def _no_connection(cause: BaseException | None) -> str:
    if isinstance(cause, ssl.SSLError):
        return "no connection: TLS fails"
    if isinstance(cause, socket.gaierror):
        return "no connection: there is no machine of that name"
    if isinstance(cause, OSError) and cause.errno:
        return f"no connection: {os.strerror(cause.errno)}"
    return "no connection"


def check_socket(path: Path) -> Path:
    """The path, if a unix socket can have it.

    Raises:
        BadSetting: it is too long.
    """
    length = len(os.fsencode(path))
    if length > SOCKET_BYTES:
        raise BadSetting(
            f"The path of the queue's socket has {length} bytes; the system allows {SOCKET_BYTES}.",
            where=str(path),
            remedy=f"Set QLORAD_HOME to a path that is at least {length - SOCKET_BYTES} bytes shorter.",
        )
    return path


def home_id(home: Home) -> str:
    """The id of this home, made once and kept in `state/home-id`."""
    path = home.state / "home-id"
    try:
        if found := path.read_text().strip():
            return found
    except FileNotFoundError:
        pass  # the first start of this home
    home.make()
    # Made under another name and linked: of two that make it at once, the second finds the first one's.
    mine = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    durable.write_text(mine, secrets.token_hex(4) + "\n")
    with suppress(FileExistsError):
        path.hardlink_to(mine)
    mine.unlink()
    return path.read_text().strip()


def keys_of(settings: Settings) -> Keys:
    """The names that the home of these settings uses."""
    return Keys(home_id(settings.folders))
