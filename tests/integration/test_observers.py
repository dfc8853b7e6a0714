"""A daemon whose jobs are watched from elsewhere: a message at the end of each, and metrics all along."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from queue import SimpleQueue

import pytest

from qlora_engine.job.states import State
from support.service import daemon_in, short_home, wait_until

received: SimpleQueue[dict[str, str]] = SimpleQueue()


class Inbox(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        received.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def inbox() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), Inbox)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_the_end_of_a_job_is_told_and_counted_and_its_secret_stands_nowhere(inbox: int) -> None:
    """The line from the real daemon to a real server; what the settings hold is in no log and no run folder."""
    port, secret = free_port(), "t0psecret"
    told = {"QLORAD_NOTIFY": f"json://127.0.0.1:{inbox}/{secret}", "QLORAD_METRICS_PORT": str(port)}
    with short_home() as home, daemon_in(home, environment=told) as daemon:
        daemon.start()
        daemon.drop("one.yaml", daemon.text(iters=3))
        job = daemon.wait_for_state("one", State.DONE)
        assert received.get(timeout=20)["title"] == "one: done"
        daemon.wait_for("notify.sent", job=job.id, kind="done")
        wait_until("it is counted", lambda: 'qlorad_jobs{state="done"} 1.0' in scrape(port))
        assert 'qlorad_child_running{child="worker"} 1.0' in scrape(port)
        kept = [path for path in home.rglob("*") if path.is_file() and secret in path.read_bytes().decode("latin1")]
        assert kept == []
