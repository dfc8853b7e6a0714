"""What the daemon does when its own Redis server has ended."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from qlora_daemon import valkey
from qlora_daemon.children import Children
from qlora_daemon.queue_health import QueueHealth
from qlora_engine.job.events import EventLog
from qlora_worker.settings import Settings


class EndedServer:
    """A child that has just ended, and had been started again so many times."""

    def __init__(self, restarts: int, *said: str) -> None:
        self.tail, self._restarts = said, restarts

    def check(self, _: float) -> int:
        return -9

    @property
    def status(self) -> SimpleNamespace:
        return SimpleNamespace(restarts=self._restarts)


@pytest.mark.parametrize(
    ("answered", "server", "moved"),
    [
        (False, EndedServer(0, "# Bad file format reading the append only file"), True),
        (False, EndedServer(3, "* Server initialized"), True),
        (False, EndedServer(2, "* Server initialized"), False),
        (True, EndedServer(0, "# Bad file format reading the append only file"), False),  # of long ago
        (True, EndedServer(3, "* DB loaded from append only file: 0.000 seconds"), False),
    ],
)
def test_a_server_that_answered_has_read_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answered: bool, server: EndedServer, moved: bool
) -> None:
    """Killed, it must find its file again: it holds what clients have asked and nobody has answered."""
    settings = Settings(home=tmp_path, redis_url=None)
    file = settings.folders.state / "appendonlydir" / "appendonly.aof.1.incr.aof"
    file.parent.mkdir(parents=True)
    file.touch()
    monkeypatch.setattr(valkey, "answers", lambda _: answered)
    log = EventLog([])
    health = QueueHealth(settings, log)
    health.probe(0.0)
    health.failed("Connection closed by server.")  # noticed before its end is
    children = Children(settings, ("true",), health=health, log=log, post=lambda _: None)
    monkeypatch.setattr(children, "_valkey", server)
    children.check(0.0)
    assert file.exists() is not moved
    assert not health.has_answered
