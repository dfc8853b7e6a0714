"""Every command of `qlora` in every trouble that people have: one clear error, its exit code, no traceback."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup as Group

from qlora_client.api import Client
from qlora_client.cli import app, main
from qlora_engine.job.errors import Exit
from qlora_engine.job.folder import Home
from qlora_engine.job.lock import held
from qlora_engine.job.pause import Pause
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from qlora_worker import requests
from support.service import ROOT

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
NEEDS_NO_SETTINGS = {"ls", "top", "schema"}


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


@pytest.mark.parametrize("name", LINES)
def test_help_fits_a_terminal_and_json_is_offered(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A sentence that is cut in the list of commands explains nothing; every command can be used by a program."""
    assert main([*name.split(), "--help"]) == 0
    assert "--json" in capsys.readouterr().out
    *before, _ = name.split()
    assert main([*before, "--help"]) == 0
    assert "..." not in capsys.readouterr().out.partition("Commands:")[2]


@pytest.mark.parametrize("name", sorted(LINES.keys() - set(ASKS) - SLOW - {"try", "report"}))
def test_json_is_all_that_a_program_reads(name: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """`qlora … --json | jq`: what is for a person goes to standard error. The rest is tested with what it needs."""
    main([*line(name, home), "--json"])
    output = capsys.readouterr().out
    if name == "logs":  # a line for each event, and none has happened
        assert output == ""
    else:
        json.loads(output)
    assert "\x1b" not in output


@pytest.mark.parametrize("name", [name for name, words in LINES.items() if "FILE" in words])
def test_a_file_that_there_is_not(name: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """It may be misspelled, or not written yet."""
    said = errors(capsys, main([name, "nosuch.yaml"]), Exit.NOINPUT)
    assert "There is no file nosuch.yaml" in said
    assert "qlora init" in said


@pytest.mark.parametrize(
    "words",
    [["init", "~nosuch/x"], ["init", "x", "--data", "~nosuch/x"], ["validate", "~nosuch"], ["submit", "~nosuch"]],
)
def test_a_user_whom_there_is_not(words: list[str], home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error in a path is no bug of ours."""
    assert "Nobody knows whose home the ~ in '~nosuch" in errors(capsys, main(words), Exit.NOINPUT)


def test_who_looks_at_a_job_that_waits_learns_that_no_daemon_runs(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """It starts as soon as the daemon can start it, and that may be never."""
    for words in (["ls"], ["show", JOB]):
        assert main(words) == 0
        assert "The daemon does not run, so nothing starts" in capsys.readouterr().err
    with held(home.daemon_lock, {"pid": os.getpid()}):
        assert main(["ls"]) == 0
    assert "does not run" not in capsys.readouterr().err


def test_who_gives_a_job_another_place_is_told_which_it_has(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state and the reason for that are as they were."""
    record = JobRecord.new(JOB, JOB).noting(state=State.HELD, reason="held on request", priority=-5, urgent=True)
    monkeypatch.setattr(Client, "prioritise", lambda *_, **__: record)
    assert main(["prioritise", JOB, "-5"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{JOB} held\n", "urgent, priority -5\n")


def test_status_says_that_the_queue_is_paused(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """`training nothing` alone leaves one to wonder why."""
    Pause(paused=True).store(home.pause)
    main(["status"])
    assert "waits    the queue is paused until `qlora resume`" in capsys.readouterr().out
    main(["status", "--json"])
    assert json.loads(capsys.readouterr().out)["paused"] is True


@pytest.mark.parametrize("name", sorted(LINES.keys() - {"doctor"}))
def test_a_setting_that_cannot_be_used(
    name: str, home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends every command but those that docs/settings.md names, which read at most QLORAD_HOME."""
    monkeypatch.setenv("QLORAD_HEAT", "warm")
    page = " ".join((ROOT / "docs" / "settings.md").read_text().split())
    code = main(line(name, home))
    said = capsys.readouterr().err
    if name in NEEDS_NO_SETTINGS:
        assert code == Exit.OK, said
        assert f"`qlora {name}`" in page
    else:
        assert code == Exit.CONFIG, said
        assert "QLORAD_HEAT" in said
        assert f"`qlora {name}`" not in page


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("submit FILE --priority high", "'--priority': it is 'high', but must be a whole number from -100 to 100."),
        ("submit FILE --priority 101", "'--priority': it is 101, but must be a whole number from -100 to 100."),
        ("submit FILE --stop-worse-than x", "'--stop-worse-than': it is 'x', but must be a number."),
        ("top --every 0", "'--every': it is 0, but must be a number from 0.2 to 3600."),
        ("top --every nan", "'--every': it is nan, but must be a number from 0.2 to 3600."),
        ("bench --seconds inf", "'--seconds': it is inf, but must be a number of at least 0.1."),
        ("try ID prompt --max-tokens 1.5", "'--max-tokens': it is '1.5', but must be a whole number of at least 1."),
        ("prioritise ID high", "'[PRIORITY]': it is 'high', but must be a whole number from -100 to 100."),
        ("clean --keep -1", "'--keep': it is -1, but must be a whole number of at least 0."),
        ("models ls --no-such", "No such option: --no-such"),
        ("ls --state asleep", "'asleep' is not one of 'accepted', "),
    ],
)
def test_a_number_that_cannot_be_is_refused_in_words(
    words: str, says: str, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """`x>=0` and `int range` are a programmer's."""
    places = {"ID": JOB, "FILE": str(home.path.parent / "job.yaml")}
    assert main([places.get(word, word) for word in words.split()]) == Exit.USAGE
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("init FOLDER --model", "--model"),
        ("validate FILE --set", "--set"),
        ("submit FILE --priority high", "--priority"),
        ("submit FILE --priority 101", "--priority"),
        ("top --every 0", "--every"),
        ("top --every often", "--every"),
        ("ls --state asleep", "--state"),
        ("ls --since lately", "--since"),
        ("ls --watch --json", "--watch"),
        ("logs --since lately", "--since"),
        ("logs --event nosuch", "--event"),
        ("try ID prompt --max-tokens 0", "--max-tokens"),
        ("try ID prompt --temp -1", "--temp"),
        ("try ID prompt --seed x", "--seed"),
        ("try ID -- ''", "PROMPT"),
        ("compare ID", "One job alone"),
        ("prioritise ID high", "PRIORITY"),
        ("prioritise ID 101", "PRIORITY"),
        ("prioritise ID", "--urgent"),
        ("pause --for ever", "--for"),
        ("clean", "--keep"),
        ("clean --checkpoints", "--keep"),
        ("clean --keep -1", "--keep"),
        ("clean --older old", "--older"),
        ("bench --pairs 0", "--pairs"),
        ("bench --seconds 0", "--seconds"),
        ("bench --case folded", "--case"),
        ("models rm", "rm"),
        ("nosuch", "nosuch"),
    ],
)
def test_a_value_that_cannot_be(words: str, says: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong is named, and nothing is done."""
    places = {"ID": JOB, "FILE": str(home.path.parent / "job.yaml"), "FOLDER": str(home.path / "new"), "''": ""}
    arguments = [places.get(word, word) for word in words.split()]
    assert says in errors(capsys, main(arguments), Exit.USAGE)
    assert not (home.path / "new").exists()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("init FOLDER --data BARRED", Exit.NOPERM, "Give yourself access"),
        ("init BARRED/new --yes", Exit.NOPERM, "Give yourself access"),
        ("submit BARRED/job.yaml", Exit.NOPERM, "Give yourself access"),
        ("submit BARRED", Exit.NOPERM, "Give yourself access"),
        ("validate BARRED/job.yaml", Exit.NOPERM, "Give yourself access"),
        ("bench BARRED/job.yaml", Exit.NOPERM, "Give yourself access"),
        (f"compare ID {OTHER} --plot BARRED/plot.svg", Exit.CANTCREAT, "Name another file"),
        ("bench FILE --plot BARRED/plot.svg", Exit.CANTCREAT, "Name another file"),
    ],
)
def test_a_place_that_may_not_be_entered(
    words: str, code: Exit, says: str, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody else's folder, or one of a disk that is mounted to be read: it is named, and what to do."""
    home.path.chmod(0o777)
    for name in ("open", "barred"):
        (home.path / name).mkdir()
    places = {"ID": JOB, "FILE": str(home.path.parent / "job.yaml"), "FOLDER": str(home.path / "new")}

    def run(folder: Path) -> int:
        return main([places.get(word, word).replace("BARRED", str(folder)) for word in words.split()])

    words, asked = words.replace(".svg", ".txt"), words
    run(home.path / "open")  # imports what it needs while it may
    words = asked
    capsys.readouterr()
    with as_nobody(home.path / "barred"):
        code_found = run(home.path / "barred")
    said = errors(capsys, code_found, code)
    assert str(home.path / "barred") in said
    assert says in said


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
    monkeypatch.setattr(requests, "connect", lambda settings, **_: _connect(settings, timeout=0.2, retries=0))
    with held(home.daemon_lock, {"pid": os.getpid()}):
        said = errors(capsys, main(line(name, home)), Exit.UNAVAILABLE)
    assert "queue does not answer" in said
    assert "remedy" in said


_connect = requests.connect


def test_a_submission_is_left_where_a_daemon_whose_queue_does_not_answer_finds_it(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not lost, and nobody is told to start what runs."""
    monkeypatch.setattr(requests, "connect", lambda settings, **_: _connect(settings, timeout=0.2, retries=0))
    with held(home.daemon_lock, {"pid": os.getpid()}):
        assert main([*line("submit", home), "--json"]) == 0
        output = capsys.readouterr()
        assert Path(json.loads(output.out)["left"]).parent == home.jobs
        assert "queue does not answer" in output.err
        assert "Start the daemon" not in output.err
        assert main(["ls"]) == 0
    assert f"1 waits in {home.jobs}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [("status", Exit.UNAVAILABLE, "Start it: qlorad"), ("try", Exit.DATAERR, "has no adapters yet")],
)
def test_what_says_by_its_exit_code_how_things_stand(
    name: str, code: Exit, says: str, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script can ask."""
    assert main(line(name, home)) == code
    output = capsys.readouterr()
    assert says in output.out + output.err


@pytest.mark.parametrize("name", sorted(LINES.keys() - SLOW - NEEDS_NOTHING))
def test_a_home_that_may_not_be_entered(name: str, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """It may belong to another user of the machine; what to do about it is said, and no file is left behind."""
    main(line(name, home))  # imports what it needs while it may
    capsys.readouterr()
    before = set(Path(tempfile.gettempdir()).glob("qlora-error-*"))
    with as_nobody(home.path):
        code = main(line(name, home))
    said = errors(capsys, code, Exit.NOPERM)
    assert "Not allowed" in said
    assert str(home.path) in said
    assert "QLORAD_HOME" in said
    assert set(Path(tempfile.gettempdir()).glob("qlora-error-*")) == before


@pytest.mark.parametrize("words", [["ls"], ["show", OTHER], ["logs", "-f", JOB], ["status"], ["top", "--once"]])
def test_a_home_that_may_only_be_read(words: list[str], home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """A disk that is mounted read-only, a backup say, is looked at like any other: no job of it is missing."""
    ended = {"event": "job.state", "job": JOB, "from": "running", "to": "done", "reason": ""}
    JobRecord.load(home.run(JOB).state).noting(state=State.DONE).store(home.run(JOB).state)
    home.run(JOB).events.write_text(json.dumps(ended) + "\n")
    home.daemon_lock.touch()  # as a daemon leaves it
    before = main(words), capsys.readouterr().err
    with only_readable(home.path):
        code = main(words)
    after = capsys.readouterr()
    assert (code, after.err) == before
    if words == ["ls"]:
        assert OTHER in after.out


@contextmanager
def only_readable(folder: Path) -> Iterator[None]:
    """As a user who may read all of the folder and write none of it."""
    modes = {path: path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}
    for path in modes:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with nobody():
            yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """As a user who may not enter the folder."""
    folder.chmod(0)
    try:
        with nobody():
            yield
    finally:
        folder.chmod(0o700)


@contextmanager
def nobody() -> Iterator[None]:
    """Without a superuser's rights, who may enter and write everything."""
    superuser = os.geteuid() == 0
    if superuser:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if superuser:
            os.seteuid(0)
