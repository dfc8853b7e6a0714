"""Whoever can write to Redis gets no further than starting a job that exists: nothing from there is run or imported."""

# ruff: noqa: E501  # tables of hostile things

from __future__ import annotations

import json
import os
import pickle
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from qlora_engine.job.states import State
from qlora_worker.connection import connect, keys_of
from support.service import Daemon, wait_until

DATE = "2026-11-22T00:00:00.000000Z"


class Payload:
    """What runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.fixture
def webhook() -> Iterator[list[str]]:
    """A server on this machine and the requests that it has received; the first entry is its address."""
    calls: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            calls.append(self.path)
            self.send_response(200)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        calls.append(f"http://127.0.0.1:{server.server_port}/")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield calls
        server.shutdown()
        thread.join()


def hostile_hashes(command: str, url: str, job_id: str) -> list[dict[str, Any]]:
    """Hashes of RQ jobs with something hostile in every field that RQ reads."""
    ours = json.dumps(["qlorad.training", None, [job_id, 1], {}]).encode()
    call = json.dumps(["os.system", None, [command], {}]).encode()
    pickled = pickle.dumps(Payload(command))
    common = {"created_at": DATE, "origin": "x", "status": "queued", "timeout": "-1"}
    hooks = json.dumps(
        [{"url": url, "events": ["finished", "failed"], "statuses": ["finished", "failed"], "method": "POST"}]
    )
    callbacks = {f"{when}_callback_name": "os.system" for when in ("success", "failure", "stopped")}
    return [
        common | {"data": zlib.compress(call)},
        common | {"data": call},
        common | {"data": zlib.compress(json.dumps(["os.system", None, [command], {"shell": True}]).encode())},
        common | {"data": zlib.compress(json.dumps(["__call__", Payload.__module__, [], {}]).encode())},
        common | {"data": zlib.compress(pickled)},
        common | {"data": pickled},
        common | {"data": zlib.compress(ours), **callbacks, "webhooks": hooks},
        common | {"data": zlib.compress(call), **callbacks, "webhooks": hooks, "result": pickled, "exc_info": pickled},
        common | {"data": zlib.compress(ours), "meta": pickled, "result": pickled, "group_id": "g", "rate_limit_key": "k"},
        common | {"data": zlib.compress(ours), "dependency_ids": '["a"]', "retries_left": "5", "repeats_left": "5"},
        {"data": zlib.compress(ours), "status": "nonsense", "created_at": "yesterday", "timeout": "soon", "ttl": "x"},
        {"data": zlib.compress(b" " * 50_000_000)},
        {"data": zlib.compress(b"[" * 100_000)},
        {"data": b"\xff\x00"},
        {"status": "queued"},
        {b"\xff": b"\xff", "data": zlib.compress(json.dumps(["f", None, ["../../x", 1], {}]).encode())},
    ]  # fmt: skip


def hostile_requests(command: str) -> list[dict[str, Any]]:
    """Entries of the stream of requests."""
    key = "d" * 32
    return [
        {"request": pickle.dumps(Payload(command))},
        {"request": b"\xff\xfe"},
        {"request": b"[" * 200_000},
        {"request": json.dumps({"key": key, "kind": "__init__", "payload": {}})},
        {"request": json.dumps({"key": "../../x", "kind": "submit", "payload": {}})},
        {"request": json.dumps({"key": key, "kind": "submit", "payload": {"text": "x" * 400_000, "name": "a", "base": "/"}})},
        {"request": json.dumps({"key": key, "kind": "submit", "payload": {"text": "", "name": "../a.yaml", "base": "/"}})},
        {"request": json.dumps({"key": key, "kind": "submit", "payload": {"text": "a: 1", "name": "a.yaml", "base": 7}})},
        {"request": json.dumps({"key": key, "kind": "cancel", "payload": {"job": "../../etc"}})},
        {"request": json.dumps({"key": [key] * 1000, "kind": None})},
        {"other": "x"},
    ]  # fmt: skip


def test_nothing_that_was_planted_in_redis_runs(daemon: Daemon, webhook: list[str]) -> None:
    """RQ alone calls whatever function a job's hash names, and imports its callbacks."""
    daemon.start()
    daemon.drop("victim.yaml", daemon.text(iters=1))
    victim = daemon.wait_for_state("victim", State.DONE)
    worker = daemon.child("worker").pid
    canary = daemon.home.path / "canary"
    url = webhook.pop()
    with connect(daemon.settings(), timeout=5) as connection:
        planted = plant(daemon, connection, f"touch {canary}", url, victim.id)
        daemon.drop("after.yaml", daemon.text(iters=2))
        daemon.wait_for_state("after", State.DONE)
        wait_until("what was planted is gone", lambda: not [name for name in planted if connection.exists(name)])
        wait_until("every request is answered", lambda: not connection.xlen(keys_of(daemon.settings()).requests))
    assert not canary.exists()
    assert not webhook
    assert daemon.child("worker").pid == worker, "the worker had to be started again"
    assert daemon.job("victim").attempt == 1
    assert len(daemon.events("training.started", job=victim.id)) == 1
    assert not Path("/x").exists()


def plant(daemon: Daemon, connection: Redis, command: str, url: str, job_id: str) -> list[str]:
    """Put everything hostile where RQ and the daemon read; returns the keys that must be gone in the end."""
    keys = keys_of(daemon.settings())
    queue = f"rq:queue:{keys.queue}"
    planted = []
    for number, fields in enumerate(hostile_hashes(command, url, job_id)):
        for name in (f"{keys.queue}-hostile-{number}", f"{keys.queue}-{job_id}-{number + 1}"):
            connection.hset(f"rq:job:{name}", mapping=fields)
            connection.rpush(queue, name)
            planted.append(f"rq:job:{name}")
    connection.sadd(f"rq:job:{keys.queue}-no-hash", "x")
    for name in ("a:b", "os.system", "../x", "\x1b[31m", b"\xff\xfe", f"{keys.queue}-no-hash"):
        connection.rpush(queue, name)
        connection.rpush(f"{queue}:intermediate", name)
    # Commands and suspension, which RQ's workers obey.
    connection.set("rq:suspended", 1)
    for worker in connection.smembers("rq:workers"):  # type: ignore[union-attr]
        name = worker.decode().removeprefix("rq:worker:")
        connection.publish(f"rq:pubsub:{name}", json.dumps({"command": "shutdown"}))
        connection.publish(f"rq:pubsub:{name}", json.dumps({"command": "kill-horse"}))
    for entry in hostile_requests(command):
        connection.xadd(keys.requests, entry)
    return planted
