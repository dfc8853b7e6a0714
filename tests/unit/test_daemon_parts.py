"""Small parts of the daemon: its log, its ladder, its pauses, and how it follows a run."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qlora_daemon.claims import _free_name
from qlora_daemon.log import RotatingLog, console
from qlora_daemon.shutdown import Step, worker_ladder
from qlora_daemon.supervisor import LONGEST_DELAY, restart_delay
from qlora_daemon.training_processes import find_training, training_processes
from qlora_daemon.valkey import says_damaged
from qlora_daemon.watch import Progress, RunWatch
from qlora_engine.job.events import Event, EventLog
from qlora_engine.job.exits import ExitRecord
from qlora_engine.job.folder import Home, RunFolder
from qlora_engine.job.record import utc_now
from qlora_worker.connection import home_id


def test_the_service_log_is_rotated_and_loses_no_line(tmp_path: Path) -> None:
    """A daemon that runs for months must not fill the disk, and launchd does not rotate."""
    sink = RotatingLog(tmp_path / "log", max_bytes=1000, keep=3)
    for number in range(120):
        sink({"event": "daemon.stopping", "number": number})
    files = [tmp_path / "log.3", tmp_path / "log.2", tmp_path / "log.1", tmp_path / "log"]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(path.stat().st_size <= 1000 for path in files)
    numbers = [json.loads(line)["number"] for path in files for line in path.read_text().splitlines()]
    assert numbers == list(range(120 - len(numbers), 120))


def test_a_line_on_the_terminal_cannot_steer_it() -> None:
    """A file may be called anything, escape sequences included."""
    output = io.StringIO()
    EventLog([console(output)]).emit("file.taken", path="/jobs/\x1b[2J\x07evil.yaml")
    EventLog([console(output)]).emit("child.output", child="valkey", line="debug")
    assert "evil.yaml" in output.getvalue()
    assert "\x1b" not in output.getvalue()
    assert "debug" not in output.getvalue()


def test_a_training_process_belongs_to_the_home_of_its_own_environment(tmp_path: Path) -> None:
    """Two daemons of one user, each in the `~/qlora` of another HOME, ended one another's training once a minute."""
    program = "import sys; print(flush=True); sys.stdin.read()"
    arguments = ["-m", "qlora_worker.task", "20250101-000000-theirs", "1", "--parent-fd", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "QLORAD_HOME"}
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={**environment, "HOME": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # by now its arguments can be read
        attempt = ("20250101-000000-theirs", 1)
        assert training_processes(Home(tmp_path / "qlora")) == {process.pid: attempt}
        assert find_training(Home(tmp_path / "qlora"), *attempt) == process.pid
        assert process.pid not in training_processes(Home(Path.home() / "qlora"))
        assert find_training(Home(Path.home() / "qlora"), *attempt) is None
        process.communicate()


@pytest.mark.parametrize(
    ("named", "there"), [("rel", "rel"), ("", "user/qlora"), (" ", "user/qlora"), ("~nosuchuser/q", None)]
)
def test_a_training_process_is_found_however_its_home_is_written(tmp_path: Path, named: str, there: str | None) -> None:
    """One that is missed goes on after its job was given to another."""
    attempt = ("20250101-000000-theirs", 1)
    program = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, "-m", "qlora_worker.task", attempt[0], "1", "--parent-fd", "0"],
        env={**os.environ, "HOME": str(tmp_path / "user"), "QLORAD_HOME": named},
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = [
            path
            for path in ("rel", "user/qlora")
            if training_processes(Home(tmp_path / path)) == {process.pid: attempt}
        ]
        process.communicate()
    assert found == ([there] if there else [])


class Closed(io.StringIO):
    """A terminal whose window was closed."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def test_a_terminal_that_is_closed_does_not_end_the_daemon() -> None:
    """It has yet to stop in order: the job that trains would lose its steps, and Valkey be left behind."""
    found: list[Event] = []
    log = EventLog([console(Closed()), found.append])
    log.emit("daemon.stopping", signal="SIGHUP")
    log.emit("daemon.stopped", seconds=0.5)
    assert [event["event"] for event in found] == ["daemon.stopping", "daemon.stopped"]


@pytest.mark.parametrize("stop_seconds", [0.1, 1.0, 60.0, 75.0])
def test_the_whole_stop_fits_into_launchds_time(stop_seconds: float) -> None:
    """After its time limit launchd kills the daemon alone and leaves the rest as orphans."""
    ladder = worker_ladder(stop_seconds, active=True)
    settling_and_valkey = 4 + 5 + 5 + 6
    assert sum(wait for wait, _ in ladder.rungs) + settling_and_valkey < 110
    assert [step for _, step in ladder.rungs] == [Step.ASK, Step.ASK, Step.ASK, Step.KILL]


def test_the_ladder_is_climbed_in_time_and_no_further_than_its_end() -> None:
    """Each rung waits for the one before."""
    ladder = worker_ladder(60.0, active=True)
    assert ladder.due(0, 0.0) is Step.ASK
    assert ladder.due(1, 59.9) is None
    assert ladder.due(1, 60.0) is Step.ASK
    assert ladder.due(3, float("inf")) is Step.KILL
    assert ladder.due(4, float("inf")) is None


def test_restarts_come_soon_at_first_and_never_stop() -> None:
    """One crash costs a quarter of a second; a broken installation does not burn a core."""
    delays = [restart_delay(number) for number in range(100)]
    assert delays[0] <= 0.25
    assert delays == sorted(delays)
    assert delays[-1] == LONGEST_DELAY


@pytest.mark.parametrize(
    ("line", "damaged"),
    [
        ("# Bad file format reading the append only file appendonly.aof.1.incr.aof: make a backup", True),
        ("# Unexpected end of file reading the append only file appendonly.aof.1.incr.aof. You can: 1) Make", True),
        ("# Fatal error: can't open the append only file appendonly.aof.2.incr.aof for reading", True),
        ("# Invalid AOF manifest file format", True),
        ("# Can't handle RDB format version 80", True),
        ("* DB loaded from append only file: 0.000 seconds", False),
        ("* Ready to accept connections unix", False),
        ("* Calling fsync() on the AOF file.", False),
    ],
)
def test_only_a_damaged_file_counts_as_one(line: str, damaged: bool) -> None:
    """Moving a good file aside would forget requests that nobody has answered."""
    assert says_damaged(["1:M * Server initialized", f"1:M {line}"]) is damaged


def test_a_run_is_followed_line_by_line(tmp_path: Path) -> None:
    """A line that is still being written is read when it is whole, and never twice."""
    run = RunFolder(tmp_path)
    watch = RunWatch(run, 2, from_start=True)
    assert watch.new_events() == []
    assert watch.progress() is None
    with run.events.open("a") as file:
        file.write('{"event": "training.stopped", "attempt": 1}\n{"event": "checkpoint.saved", "attempt": 2, "st')
        file.flush()
        assert watch.new_events() == []
        file.write('ep": 7}\n{"event": "job.state", "attempt": 2}\nnot json\n')
    assert [event["step"] for event in watch.new_events()] == [7]
    assert watch.new_events() == []
    run.metrics.write_text('{"event": "training.step", "attempt": 2, "step": 3, "steps": 9}\n{"event": "tr')
    assert watch.progress() == Progress(3, 9)
    assert watch.progress() is None


def test_an_exit_is_a_code_or_a_signal(tmp_path: Path) -> None:
    """The decision about the job rests on this file."""
    now = utc_now()
    for returncode, code, name in ((0, 0, None), (75, 75, None), (-9, None, "SIGKILL"), (-63, None, "signal 63")):
        ExitRecord.of(returncode, attempt=1, started=now, ended=now).store(tmp_path / "exit-1.json")
        found = ExitRecord.load(tmp_path / "exit-1.json")
        assert found is not None
        assert (found.code, found.signal) == (code, name)
    assert ExitRecord.load(tmp_path / "exit-2.json") is None


def test_a_log_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a line tells of has happened; on a full disk a failed line must not pass for a failed deed."""
    log = RotatingLog(tmp_path / "log.jsonl", max_bytes=10_000, keep=2)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "write", full)
        EventLog([log]).emit("inbox.watching", path="lost")
    assert "No space left" in capsys.readouterr().err
    EventLog([log]).emit("inbox.watching", path="kept")
    assert [json.loads(line)["path"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == ["kept"]


@pytest.mark.parametrize("name", ["学" * 84 + ".txt", "a" * 250 + ".yaml", "b" * 255, "." + "c" * 250])
def test_what_is_rejected_keeps_a_name_that_the_disk_takes(tmp_path: Path, name: str) -> None:
    """The text beside it is four bytes longer; without room for it the daemon could not start again."""
    for _ in range(3):
        target = _free_name(tmp_path, name)
        target.touch(exist_ok=False)
        target.with_name(f"{target.name}.txt").touch(exist_ok=False)


def test_two_that_make_a_homes_id_at_once_agree(tmp_path: Path) -> None:
    """Daemon and worker would wait for each other on different queues."""
    home = Home(tmp_path / "home")
    home.make()
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: home_id(home), range(64)))) == 1
    assert [path.name for path in home.state.iterdir()] == ["home-id"]
