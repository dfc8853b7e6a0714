"""The shell command: every failure is one clear error with its exit code, never a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qlora_client import listing
from qlora_client.api import Client
from qlora_client.cli import app, main
from qlora_engine.job.folder import Home
from qlora_engine.job.lock import held
from qlora_engine.job.pause import Pause
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State

JOB = "20261122-143501-sql-assistant"
HEAVY = [
    "mlx",
    "mlx_lm",
    "numpy",
    "matplotlib",
    "psutil",
    "rich",
    "redis",
    "rq",
    "pydantic",
    "structlog",
    "transformers",
    "yaml",
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in list(os.environ):
        if name.startswith("QLORAD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("QLORAD_HOME", str(tmp_path / "home"))
    return Home(tmp_path / "home")


def make_job(home: Home, *states: State, job_id: str = JOB, reason: str = "") -> None:
    run = home.run(job_id)
    run.path.mkdir(parents=True)
    record = JobRecord.new(job_id, "sql-assistant")
    for state in states:
        record = record.moved(state, reason)
    record.store(run.state)
    event = {"ts": "2026-11-22T14:35:01.000+00:00", "level": "info", "event": "job.state", "job": job_id}
    run.events.write_text(
        "".join(json.dumps(event | {"from": "accepted", "to": state, "reason": reason}) + "\n" for state in states)
    )


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a job file and a file that is none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no-job-file.txt").touch()
    (tmp_path / "job.yaml").write_text("model: smollm2\n")


@pytest.mark.parametrize(
    "words",
    ["sql -5 --urgent", "sql --urgent -5", "--urgent sql -5", "sql --urgent -- -5", "--urgent -- sql -5"],
)
def test_a_priority_under_zero_is_no_option(home: Home, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """A lower priority than that of all others is half of what there is to say."""
    make_job(home, State.QUEUED)
    asked: list[object] = []

    def prioritise(client: Client, job: str, priority: int | None, *, urgent: bool | None) -> JobRecord:
        asked.append((job, priority, urgent))
        return client.job(job)

    monkeypatch.setattr(Client, "prioritise", prioritise)
    assert main(["prioritise", *words.split()]) == 0
    assert asked == [("sql", -5, True)]


@pytest.mark.usefixtures("working_folder")
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["submit", "missing.yaml"], 66, "There is no file missing.yaml"),
        (["submit", "no-job-file.txt"], 65, "is not a job file"),
        (["show", "nothing"], 66, "No job has an id that contains 'nothing'"),
        (["logs", "nothing"], 66, "No job has an id"),
        (["logs", "-f", "nothing"], 66, "No job has an id"),
        (["compare", "sql", "nothing"], 66, "No job has an id"),
        (["cancel", "nothing"], 66, "No job has an id"),
        (["try", "nothing", "Why?"], 66, "No job has an id"),
        (["try", "sql", "Why?"], 65, "has no adapters yet"),
        (["cancel", "sql"], 69, "The daemon does not run"),
        (["hold", "nothing"], 66, "No job has an id"),
        (["hold", "sql"], 69, "The daemon does not run"),
        (["release", "sql"], 69, "The daemon does not run"),
        (["retry", "sql"], 69, "The daemon does not run"),
        (["prioritise", "sql", "5"], 69, "The daemon does not run"),
        (["prioritise", "sql", "-5"], 69, "The daemon does not run"),
        (["pause", "--for", "2h"], 69, "The daemon does not run"),
        (["resume"], 69, "The daemon does not run"),
        (["models", "add", "missing.gguf"], 66, "neither a known model nor a file named missing.gguf"),
    ],
)
def test_a_failure_is_one_clear_error_with_its_exit_code(
    home: Home, capfd: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    """A person must read what to do; a script must see the exit code."""
    make_job(home, State.QUEUED)
    assert main(arguments) == code
    output = capfd.readouterr()
    assert "qlora: " in output.err
    assert says in output.err
    assert "remedy" in output.err
    assert "Traceback" not in output.err
    assert output.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["shwo"],
        ["show"],
        ["ls", "--al"],
        ["cancel", "a", "b"],
        ["models", "rm"],
        ["prioritise", "a"],
        ["prioritise", "a", "101"],
        ["prioritise", "a", "-101"],
        ["prioritise", "a", "-5", "-6"],
        ["prioritise", "a", "-5x"],
        ["prioritise", "a", "-5", "--urgently"],
        ["pause", "--for", "soon"],
        ["top", "--every", "0"],
        ["compare"],
        ["try", "sql"],
        ["try", "sql", "Why?", "--max-tokens", "0"],
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(
    home: Home, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """EX_USAGE, as for every program here, and nothing is done."""
    assert main(arguments) == 64
    assert "Usage: qlora" in capsys.readouterr().err
    assert not home.path.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit"],
        ["top"],
        ["ls"],
        ["show"],
        ["logs"],
        ["compare"],
        ["cancel"],
        ["bench"],
        ["try"],
        ["hold"],
        ["prioritise"],
        ["pause"],
        [],
        ["models"],
        ["models", "add"],
    ],
)  # fmt: skip
def test_help_says_what_to_type_next(arguments: list[str]) -> None:
    """Nobody reads a manual first."""
    result = CliRunner().invoke(app, [*arguments, "--help"])
    assert result.exit_code == 0
    assert "`qlora " in " ".join(result.output.split())  # the line may break anywhere


def test_help_loads_nothing_heavy() -> None:
    """`qlora --help` and completion would take a second otherwise."""
    code = (
        "import sys, qlora_client.cli; "
        f"print(*(name for name in {HEAVY} if name in sys.modules)); "
        "sys.exit(qlora_client.cli.main(['--help']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[0] == ""
    assert "qlora demo" in done.stdout


def loaded_by(home: Home, *arguments: str) -> set[str]:
    """Which of the heavy packages a command has loaded by its end."""
    code = (
        "import sys; from qlora_client.cli import main; main(sys.argv[1:]); "
        f"print(*(name for name in {HEAVY} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "QLORAD_HOME": str(home.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


def test_a_list_loads_nothing_that_takes_longer_than_the_list(home: Home) -> None:
    """`qlora ls` among ten thousand jobs takes 0.2 s; pydantic alone would take as long."""
    make_job(home, State.QUEUED)
    assert loaded_by(home, "ls", "--json", "--state", "queued", "--name", "sql*", "--since", "90m") == set()
    assert loaded_by(home, "ls") == {"rich"}


def test_a_screen_loads_neither_the_queue_nor_a_plotting_library(home: Home) -> None:
    """`top` reads files; it starts at once, and works when Redis is down."""
    make_job(home, State.QUEUED)
    loaded = loaded_by(home, "top", "--once")
    assert loaded.isdisjoint({"redis", "rq", "matplotlib", "mlx", "transformers"})


def test_an_empty_home_says_how_to_begin(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """The first `qlora ls` of a new user is not an error and not nothing."""
    assert main(["ls"]) == 0
    assert main(["models", "ls"]) == 0
    assert main(["logs"]) == 0
    errors = capsys.readouterr().err
    assert "qlora init my-job" in errors
    assert "qlora models add smollm2" in errors
    assert not home.path.exists()


def test_reading_works_without_a_daemon(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Disk is the truth: jobs and their logs can be read when everything else is down."""
    make_job(home, State.QUEUED, State.STARTING, reason="its turn")
    for arguments in (["ls"], ["show", "sql"], ["logs", "sql"]):
        assert main(arguments) == 0
        output = capsys.readouterr().out
        assert "starting" in output
        assert "its turn" in output


def test_json_is_for_programs(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output is JSON alone, and holds no character that a terminal obeys."""
    make_job(home, State.QUEUED, reason="\x1b[31m\x9b\u202e")
    parsed = []
    for arguments in (
        ["ls", "--json"],
        ["show", "sql", "--json"],
        ["logs", "sql", "--json"],
        ["models", "ls", "--json"],
    ):
        assert main(arguments) == 0
        output = capsys.readouterr().out
        assert output.isascii()
        assert "\x1b" not in output
        parsed.append(json.loads(output))
    listed, shown, event, models = parsed
    assert listed[0]["id"] == shown["id"] == event["job"] == JOB
    assert shown["progress"]["state"] == "queued"
    assert models == []


def test_only_the_newest_jobs_are_listed_unless_all_are_asked_for(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten thousand jobs must not scroll by; that there are more must be said."""
    for number in range(60):
        make_job(home, State.QUEUED, job_id=f"20261122-1435{number:02}-a")
    assert main(["ls"]) == 0
    output = capsys.readouterr()
    assert output.out.count("20261122-") == 50
    assert "newest 50 of 60" in output.err
    assert main(["ls", "--all"]) == 0
    assert capsys.readouterr().out.count("20261122-") == 60


def test_one_job_is_spoken_of_as_one(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody says `1 jobs`."""
    make_job(home, State.QUEUED)
    assert main(["ls", "--name", "poem"]) == 0
    assert capsys.readouterr().err == "The one job that there is does not fit.\n"
    home.run(JOB).state.write_text("{")
    assert main(["ls"]) == 0
    assert f"{JOB} has no readable record. Why: qlora show {JOB}\n" in capsys.readouterr().err


def test_following_without_a_daemon_says_so(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing would ever happen, and nobody would know why."""
    make_job(home, State.CANCELLED)
    assert main(["logs", "-f", "sql"]) == 0
    assert "qlorad" in capsys.readouterr().err
    with held(home.daemon_lock, {"pid": os.getpid()}):
        assert main(["logs", "-f", "sql"]) == 0
    assert capsys.readouterr().err == ""


def test_a_bad_setting_is_named(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typo in the environment must not look like a bug."""
    monkeypatch.setenv("QLORAD_SETTLE_SECONDS", "soon")
    assert main(["show", "sql"]) == 78
    assert "QLORAD_SETTLE_SECONDS" in capsys.readouterr().err


def test_a_bug_shows_one_line_and_keeps_the_details(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback helps who mends it, and nobody else."""

    def broken(*_: object) -> None:
        raise KeyError("\x1b[31mboom")

    monkeypatch.setattr(listing, "overview", broken)
    assert main(["ls"]) == 70
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "\x1b" not in error
    details = home.logs / "client-errors.log"
    assert str(details) in error
    assert "Traceback" in details.read_text()


def test_a_home_that_cannot_be_used_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """QLORAD_HOME on a file, or a disk that is away: what, where and what to do; details would help nobody."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("QLORAD_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["ls"]) == 71
    error = capsys.readouterr().err
    assert error.startswith("qlora: A file stands where a folder should be.\n  where:")
    assert "QLORAD_HOME" in error
    assert str(tmp_path / "file") in error
    assert not list(tmp_path.glob("qlora-error-*.log"))


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "qlora_client.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has them ignore Ctrl-C, and so would the child.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509  # no threads yet
    )


def test_ctrl_c_ends_quietly(home: Home) -> None:
    """Following is ended by Ctrl-C every time; that is no error to print."""
    make_job(home, State.QUEUED)
    with start("logs", "-f", "--json", "sql") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert out == ""
    assert err.count("\n") <= 1  # that no daemon runs
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("program", "imported"),
    [
        ("import sys; from qlora_client.entry import main; sys.exit(main())", "typer"),
        ("from qlora_daemon.entry import main; main()", "typer"),
        ("import runpy; runpy.run_module('qlora_engine', run_name='__main__')", "structlog"),
    ],
)
def test_ctrl_c_while_a_program_is_imported_ends_it_quietly(tmp_path: Path, program: str, imported: str) -> None:
    """Whoever sees a typing error at once is not shown the insides of a library."""
    (tmp_path / f"{imported}.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    # A shell that runs the tests in the background has them ignore Ctrl-C, and so would the child.
    begin = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    done = subprocess.run(
        [sys.executable, "-c", begin + program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_closed_pipe_ends_quietly(home: Home) -> None:
    """`qlora logs | head` closes the pipe; that is no error to print."""
    make_job(home, State.QUEUED)
    run = home.run(JOB)
    run.events.write_text(run.events.read_text() * 20_000)
    with start("logs", "--json", "sql") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        error = process.stderr.read()
    assert error == ""


def test_a_queued_job_says_what_it_waits_for(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody should have to look into another job's record to know when his own begins."""
    later = datetime.now(UTC) + timedelta(hours=3)
    record = JobRecord.new(JOB, "sql-assistant").moved(State.QUEUED).noting(not_before=later, urgent=True)
    home.run(JOB).path.mkdir(parents=True)
    record.store(home.run(JOB).state)
    home.state.mkdir()
    Pause(paused=True).store(home.pause)
    assert main(["ls"]) == 0
    output = capsys.readouterr()
    assert "or later" in output.out
    assert "urgent" in output.out
    assert "The queue is paused until `qlora resume`." in output.err
    assert main(["show", JOB]) == 0
    assert "or later" in capsys.readouterr().out
    assert main(["show", JOB, "--json"]) == 0
    assert "or later" in json.loads(capsys.readouterr().out)["waits_for"]
