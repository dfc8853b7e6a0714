"""The embedded server by itself, as the daemon starts it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis

from qlora_daemon import valkey
from qlora_engine.job.folder import Home
from qlora_worker.connection import Keys, connect, keys_of
from qlora_worker.settings import Settings
from support.service import short_home, wait_until


@contextmanager
def valkey_server() -> Iterator[tuple[Redis, Keys, Home]]:
    """Start it in a home of its own; a connection, the names of its keys, and the home."""
    with short_home() as folder:
        settings = Settings(home=folder, redis_url=None)
        home = settings.folders
        home.make()
        process = subprocess.Popen(valkey.command(home), stdout=subprocess.DEVNULL)
        try:
            wait_until("the server answers", lambda: valkey.answers(settings))
            yield connect(settings, timeout=8.0), keys_of(settings), home
        finally:
            process.terminate()
            process.wait(10)
