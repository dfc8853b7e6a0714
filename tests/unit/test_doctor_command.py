"""`qlora doctor` as a person and as a program see it, and that nothing keeps it from answering."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from qlora_client.doctor import disk, folders, page
from qlora_client.doctor.examination import TOPICS, Examination, examine
from qlora_client.doctor.finding import Finding, Severity, Verdict, ok
from qlora_client.doctor.machine import Machine
from qlora_client.doctor.topic import Topic
from qlora_engine.job.errors import ProgramFailed
from qlora_worker.settings import Settings
from support.service import ROOT

MANY = "It is \x1b[31mred. " + "Many words follow here. " * 6
PAGE = Examination(
    (
        Finding("Python", "architecture", Severity.OK, "arm64"),
        Finding("Home", "home", Severity.ERROR, "/Volumes/a/qlora cannot be written.", "sudo chown /Volumes/a/qlora"),
        Finding("Home", "folders", Severity.WARNING, MANY, "Wait. " * 20),
        Finding("Service", "daemon", Severity.INFO, "None runs.", "Start one: qlorad"),
    ),
    0.74,
)  # fmt: skip


def shown(found: Examination, width: int) -> list[str]:
    return [line.plain for line in page.lines(found, width)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine("linux", Settings.model_construct(home=tmp_path / "home"))


def topic_of(name: str, look: Callable[[Machine], Verdict]) -> Topic[Verdict]:
    """A topic with one check, which says what the look gave."""
    return Topic(name, look, {name: lambda facts: facts})


# The page


@pytest.mark.parametrize("width", [80, 120])
def test_the_page_fits_a_terminal(width: int) -> None:
    """A line that is broken by the terminal cannot be read as a table any more."""
    assert max(map(len, shown(PAGE, width))) <= width
    assert max(map(len, shown(PAGE, width))) > width - 20


def test_in_a_narrow_terminal_what_was_found_stands_below_the_names() -> None:
    """Beside them it would be broken by the terminal, in the middle of words."""
    lines = shown(PAGE, 40)
    assert max(map(len, lines)) <= 40
    at = lines.index("  error    home")
    assert lines[at + 1 : at + 3] == ["    /Volumes/a/qlora cannot be written.", "    → sudo chown /Volumes/a/qlora"]


def test_a_pipe_gets_a_line_for_each_finding_and_each_remedy() -> None:
    """So that grep finds them."""
    lines = shown(PAGE, 10_000)
    assert "  error    home          /Volumes/a/qlora cannot be written." in lines
    assert "                         → sudo chown /Volumes/a/qlora" in lines
    assert lines[-1] == "4 checks: 1 ok, 1 to know, 1 warning, 1 error, in 0.7 s."


def test_a_command_of_a_remedy_is_never_cut() -> None:
    """It is there to be copied."""
    assert any("/Volumes/a/qlora" in line for line in shown(PAGE, 40))


def test_what_files_and_programs_say_cannot_colour_the_page() -> None:
    """A folder's name may hold anything."""
    assert not any("\x1b" in line for line in shown(PAGE, 80))


@pytest.mark.parametrize(
    ("no_color", "terminal", "coloured"), [("", True, True), ("1", True, False), ("", False, False)]
)
def test_colours_are_for_terminals_that_want_them(
    monkeypatch: pytest.MonkeyPatch, no_color: str, terminal: bool, coloured: bool
) -> None:
    """The words say it all, too."""
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm-256color")
    output = StringIO()
    page.show(PAGE, Console(file=output, force_terminal=terminal, highlight=False, markup=False, width=80))
    assert ("\x1b[31m" in output.getvalue() or "\x1b[1;31m" in output.getvalue()) is coloured
    assert "error" in output.getvalue()


def test_a_program_reads_it_as_json() -> None:
    """With the worst of all findings, for those that ask no more."""
    found = page.as_json(PAGE)
    assert (found["worst"], found["exit_code"], found["seconds"]) == ("error", 69, 0.74)
    assert json.loads(json.dumps(found))["findings"][1] == {
        "topic": "Home", "name": "home", "severity": "error",
        "what": "/Volumes/a/qlora cannot be written.", "remedy": "sudo chown /Volumes/a/qlora",
    }  # fmt: skip


# Whatever happens


def test_a_topic_that_hangs_is_given_up(machine: Machine) -> None:
    """A launchctl or a disk that does not answer is what people ask the doctor about."""
    never = threading.Event()

    def hangs(_machine: Machine) -> Verdict:
        never.wait()
        return ok("at last")

    begun = time.monotonic()
    found = examine(machine, [topic_of("slow", hangs), topic_of("quick", lambda _: ok("well"))], seconds=0.5)
    assert time.monotonic() - begun < 5
    never.set()
    assert [(finding.topic, finding.severity) for finding in found.findings] == [
        ("slow", Severity.WARNING),
        ("quick", Severity.OK),
    ]
    assert "no answer within 0.5 s" in found.findings[0].what


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ProgramFailed("`pmset` hangs.", remedy="Restart it."), "`pmset` hangs."),
        (PermissionError(13, "Permission denied", "/x"), "Permission denied"),
        (ZeroDivisionError("by me"), "a bug, ZeroDivisionError: by me"),
    ],
)
def test_a_topic_that_fails_does_not_hide_the_others(machine: Machine, error: Exception, says: str) -> None:
    """The doctor is asked when things are not as anybody foresaw."""

    def fails(_machine: Machine) -> Verdict:
        raise error

    found = examine(machine, [topic_of("bad", fails), topic_of("good", lambda _: ok("well"))]).findings
    assert [finding.severity for finding in found] == [Severity.WARNING, Severity.OK]
    assert says in found[0].what
    assert found[0].remedy


def test_a_home_that_hangs_is_read_by_nothing_else(tmp_path: Path) -> None:
    """A thread that reads a disk which is away would keep the program from ending, for good."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    machine = Machine("linux", Settings.model_construct(home=pipe))
    found = examine(machine, [folders.HOME, disk.TOPIC, folders.DATA]).findings
    assert [(finding.name, finding.severity) for finding in found if finding.name == "home"] == [
        ("home", Severity.ERROR)
    ]
    assert {finding.topic for finding in found} == {"Home"}


# All of it


def doctor(home: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QLORAD_")}
    return subprocess.run(
        [sys.executable, "-P", "-X", "importtime", "-m", "qlora_client.cli", "doctor", *options],
        env={**environment, "QLORAD_HOME": str(home), **variables},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_nothing_keeps_jobs_from_running_here_and_mlx_is_not_loaded(tmp_path: Path) -> None:
    """A machine that runs these tests is healthy. Loading mlx would take the GPU's memory from the job that trains."""
    done = doctor(tmp_path / "home", "--json", QLORAD_DISK_RESERVE_GB="0")
    found = json.loads(done.stdout)
    errors = [finding for finding in found["findings"] if finding["severity"] == "error"]
    bad = [finding for finding in errors if finding["topic"] != "Memory"]  # other tests may need all of it
    assert bad == []
    assert done.returncode == (69 if errors else 0)
    assert {finding["topic"] for finding in found["findings"]} >= {"Python", "Computing", "Memory", "Queue", "Settings"}
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"mlx", "mlx.core", "transformers"}


def test_an_error_shows_in_the_exit_code(tmp_path: Path) -> None:
    """A script asks by that alone."""
    done = doctor(tmp_path / ("long" * 30), QLORAD_STOP_SECONDS="for ever", QLORAD_STAL_SECONDS="9")
    assert done.returncode == 69
    assert "Traceback" not in done.stderr
    for words in ("socket path", "QLORAD_STOP_SECONDS cannot be used", "did you mean QLORAD_STALL_SECONDS?"):
        assert words in done.stdout


def test_every_check_is_in_the_documentation() -> None:
    """Whoever looks one up must find it, under the name that the page shows."""
    text = (ROOT / "docs" / "doctor.md").read_text()
    documented = {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")}
    assert {name for topic in TOPICS for name in topic.checks} <= documented
