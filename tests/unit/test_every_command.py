"""Every command of `qlora` in every trouble that people have: one clear error, its exit code, no traceback."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup as Group

from qlora_client.cli import app, main
from qlora_engine.job.errors import Exit
from qlora_engine.job.folder import Home
from qlora_engine.job.lock import held
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from qlora_worker import queue

JOB, OTHER = "20261122-143501-sql", "20261122-143502-poem"
NOBODY = 65534

# A right command line for each command; a command that is not here fails a test. ID is a job's, FILE a job file.
LINES: dict[str, list[str]] = {
    "init": ["FOLDER", "--yes"],
    "validate": ["FILE"],
    "submit": ["FILE"],
    "schema": [],
    "top": ["--once"],
    "ls": [],
    "show": ["ID"],
    "logs": ["ID"],
    "try": ["ID", "prompt"],
    "fuse": ["ID"],
    "export": ["ID", "--gguf"],
    "report": ["ID", "--no-open"],
    "compare": ["ID", OTHER],
    "cancel": ["ID"],
    "hold": ["ID"],
    "release": ["ID"],
    "retry": ["ID"],
    "prioritise": ["ID", "5"],
    "pause": [],
    "resume": [],
    "status": [],
    "doctor": [],
    "clean": ["--older", "1d"],
    "bench": ["FILE"],
    "demo": [],
    "models add": ["nosuch.gguf"],
    "models ls": [],
}
ASKS = ("cancel", "hold", "release", "retry", "prioritise", "pause", "resume")  # the daemon, and cannot do without
NEEDY = [name for name, words in LINES.items() if {"ID", "FILE"} & {*words} and name not in ("logs", "bench")]
# They start processes that take seconds, and have tests of their own.
SLOW = {"validate", "bench", "demo", "doctor", "models add"}
NEEDS_NOTHING = {"schema"}


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    # Not in pytest's own folder, which only its owner may enter.
    with tempfile.TemporaryDirectory() as folder:
        for name in list(os.environ):
            if name.startswith("QLORAD_"):
                monkeypatch.delenv(name)
        Path(folder).chmod(0o755)
        home = Home(Path(folder) / "home")
        monkeypatch.setenv("QLORAD_HOME", str(home.path))
        home.make()
        for job in (JOB, OTHER):
            run = home.run(job)
            run.path.mkdir()
            JobRecord.new(job, job).moved(State.QUEUED).store(run.state)
            run.events.touch()
        (Path(folder) / "job.yaml").write_text("model: nosuch\n")
        yield home


def line(name: str, home: Home, job: str = JOB) -> list[str]:
    """A command line in this home."""
    places = {"ID": job, "FILE": str(home.path.parent / "job.yaml"), "FOLDER": str(home.path / "new")}
    return [*name.split(), *(places.get(word, word) for word in LINES[name])]


def errors(capsys: pytest.CaptureFixture[str], code: int, expected: int) -> str:
    """What was said, which must be an error as people should see it."""
    said = capsys.readouterr().err
    assert code == expected, said
    assert "Traceback" not in said
    assert "a bug" not in said
    assert said.strip()
    return said


def names(group: Group, before: str = "") -> Iterator[str]:
    """Of all commands, as the program knows them."""
    for name, command in group.commands.items():
        if isinstance(command, Group):
            yield from names(command, f"{before}{name} ")
        else:
            yield f"{before}{name}"


def test_no_command_is_left_out() -> None:
    """A new command must be put through all of this."""
    root = typer.main.get_command(app)
    assert isinstance(root, Group)
    assert set(names(root)) == LINES.keys()


@pytest.mark.parametrize("name", LINES)
def test_an_option_that_there_is_not(name: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error must not be taken for something else."""
    said = errors(capsys, main([*line(name, home), "--no-such-option"]), Exit.USAGE)
    assert f"qlora {name}" in said
    assert "No such option: --no-such-option" in said


@pytest.mark.parametrize("name", NEEDY)
def test_an_argument_too_few(name: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """What is missing is named."""
    assert "Missing argument" in errors(capsys, main(name.split()), Exit.USAGE)


@pytest.mark.parametrize("name", sorted(LINES.keys() - {"compare"}))  # which takes any number of jobs
def test_an_argument_too_many(name: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """`qlora cancel a b` must not cancel a alone."""
    errors(capsys, main([*line(name, home), "x", "y"]), Exit.USAGE)


@pytest.mark.parametrize("name", [name for name, words in LINES.items() if "ID" in words])
def test_a_job_that_there_is_not(name: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that there are help more than that one is missing."""
    said = errors(capsys, main(line(name, home, "nosuch")), Exit.NOINPUT)
    assert "No job has an id that contains 'nosuch'" in said
    assert JOB in said


@pytest.mark.parametrize("name", [name for name, words in LINES.items() if "ID" in words])
def test_a_part_of_an_id_that_two_jobs_have(name: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Guessing would cancel the wrong one."""
    said = errors(capsys, main(line(name, home, "20261122")), Exit.NOINPUT)
    assert JOB in said
    assert OTHER in said


@pytest.mark.parametrize("name", ["submit"])
def test_a_file_that_there_is_not(name: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """And what it could have been."""
    assert "nosuch.yaml" in errors(capsys, main([name, "nosuch.yaml"]), Exit.NOINPUT)


@pytest.mark.parametrize("name", ASKS)
def test_without_a_daemon(name: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing can be asked of it; how it is started is said."""
    said = errors(capsys, main(line(name, home)), Exit.UNAVAILABLE)
    assert "The daemon does not run" in said
    assert "qlorad" in said


@pytest.mark.parametrize("name", sorted(LINES.keys() - set(ASKS) - SLOW - {"status", "try"}))
def test_what_needs_no_daemon_does_without(name: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """A person looks at yesterday's runs on a machine where nothing runs."""
    code = main(line(name, home))
    said = capsys.readouterr().err
    assert code == 0, said
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ASKS)
def test_with_a_daemon_whose_queue_does_not_answer(
    name: str, home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis may be full, damaged or away; the command says so and ends."""
    monkeypatch.setattr(queue, "connect", lambda settings, **_: _connect(settings, timeout=0.2, retries=0))
    with held(home.daemon_lock, {"pid": os.getpid()}):
        said = errors(capsys, main(line(name, home)), Exit.UNAVAILABLE)
    assert "queue does not answer" in said
    assert "remedy" in said


_connect = queue.connect


@pytest.mark.parametrize("name", sorted(LINES.keys() - SLOW - NEEDS_NOTHING))
def test_a_home_that_may_not_be_entered(name: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """It may belong to another user of the machine; what to do about it is said, and no file is left behind."""
    main(line(name, home))  # imports what it needs while it may
    capsys.readouterr()
    before = set(Path(tempfile.gettempdir()).glob("qlora-error-*"))
    with as_nobody(home):
        code = main(line(name, home))
    said = errors(capsys, code, Exit.NOPERM)
    assert "Not allowed" in said
    assert str(home.path) in said
    assert "QLORAD_HOME" in said
    assert set(Path(tempfile.gettempdir()).glob("qlora-error-*")) == before


@contextmanager
def as_nobody(home: Home) -> Iterator[None]:
    """As a user who may not enter the home; a superuser may enter everything."""
    home.path.chmod(0)
    superuser = os.geteuid() == 0
    if superuser:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if superuser:
            os.seteuid(0)
        home.path.chmod(0o700)
