"""What a shell completes, and that it does so at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_client.completion import MOST, event_names, job_ids, known_models, models

HEAVY = ["mlx", "numpy", "matplotlib", "rich", "redis", "rq", "pydantic", "structlog", "transformers", "yaml", "psutil"]
JOBS = ["20261121-090000-haiku", "20261122-143501-sql-short", "20261122-150000-sql-long", "20261122-160000-sql"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLORAD_HOME", str(tmp_path))
    for name in [*JOBS, ".tmp-20261122-170000-unfinished", "notes"]:
        (tmp_path / "runs" / name).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("", [JOBS[3], JOBS[2], JOBS[1], JOBS[0]]),
        ("20261122-15", [JOBS[2]]),
        ("hai", ["haiku"]),
        ("sql", ["sql-long", "sql-short"]),  # `sql` alone is a part of all three ids
        ("x", []),
    ],
)
def test_jobs_are_completed_by_id_or_by_name(home: Path, typed: str, offered: list[str]) -> None:
    """People remember what they called a job, and what is completed must name exactly one."""
    assert home.exists()
    assert job_ids(typed) == offered


def test_completion_reads_no_file_and_offers_what_a_person_can_read(home: Path) -> None:
    """Each press of Tab waits for it."""
    for number in range(300):
        (home / "runs" / f"20261123-{100_000 + number}-a").mkdir()
    assert len(job_ids("2026")) == MOST
    assert job_ids("2026")[0] == "20261123-100299-a"


def test_a_home_that_is_not_there_completes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An error in the middle of a command line that is being typed helps nobody."""
    monkeypatch.setenv("QLORAD_HOME", str(tmp_path / "none"))
    assert job_ids("") == []


def test_events_are_completed_from_the_vocabulary() -> None:
    """Nobody knows sixty names by heart."""
    assert event_names("queue.d") == ["queue.damaged"]
    assert len(event_names("")) > 50


def test_models_are_completed_from_their_folders(home: Path) -> None:
    """Those of this home for a job, those that are known by name where one is added."""
    for name in ("smollm2", "smooth", ".tmp-smollm3"):
        (home / "models" / name).mkdir(parents=True)
    assert models("smo") == ["smollm2", "smooth"]
    assert models("other") == []
    assert known_models("smo") == ["smollm2"]


def complete(home: Path, *words: str) -> list[str]:
    """What bash offers for the last of these words."""
    asked = {"_QLORA_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = ask(home, asked)
    assert done.stderr == ""
    return done.stdout.split()


def ask(home: Path, asked: dict[str, str], *program: str) -> subprocess.CompletedProcess[str]:
    """Run `qlora` as a shell does to learn what it may offer."""
    return subprocess.run(
        [sys.executable, *(program or ("-m", "qlora_client.cli"))],
        env={**os.environ, "QLORAD_HOME": str(home), **asked},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("qlora rel", ["release"]),
        ("qlora show 20261121", [JOBS[0]]),
        ("qlora compare sql-short hai", ["haiku"]),
        ("qlora submit job.yaml --after hai", ["haiku"]),
        ("qlora ls --state ru", ["running"]),
        ("qlora logs --event queue.pa", ["queue.paused"]),
        ("qlora init new --model smo", ["smollm2"]),
        ("qlora models add smo", ["smollm2"]),
        ("qlora submit jo", []),  # nothing of ours: the shell offers its files
    ],
)
def test_a_shell_completes_whatever_a_command_names(home: Path, words: str, offered: list[str]) -> None:
    """Commands, ids, states, events and models, as bash asks for them; files are the shell's own."""
    (home / "models" / "smollm2").mkdir(parents=True)
    assert complete(home, *words.split()) == offered


@pytest.mark.parametrize(
    ("shell", "asked", "answer"),
    [
        ("zsh", {}, "_arguments '*: :((\"20261121-090000-haiku\"))'"),
        ("fish", {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}, "20261121-090000-haiku"),
    ],
)
def test_zsh_and_fish_are_answered_too(home: Path, shell: str, asked: dict[str, str], answer: str) -> None:
    """The shell of a Mac is zsh."""
    asked |= {"_QLORA_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "qlora show 20261121"}
    done = ask(home, asked)
    assert (done.stdout.strip(), done.stderr) == (answer, "")


def test_a_press_of_tab_loads_nothing_heavy(home: Path) -> None:
    """It is waited for: among ten thousand jobs it takes 0.2 s, and rich or pydantic alone would take as long."""
    code = (
        "import atexit, sys; from qlora_client.cli import main; "
        f"atexit.register(lambda: print(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)); main()"
    )
    done = ask(home, {"_QLORA_COMPLETE": "complete_bash", "COMP_WORDS": "qlora show 2", "COMP_CWORD": "2"}, "-c", code)
    assert (done.stdout.split()[0], done.stderr) == (JOBS[3], "\n")


def test_completion_can_be_installed_and_then_bash_offers_what_there_is(home: Path, tmp_path: Path) -> None:
    """One command, and the next shell completes."""
    command = [sys.executable, "-m", "qlora_client.cli", "--install-completion"]
    done = subprocess.run(
        ["/bin/bash", "-c", '"$@"; exit $?', "bash", *command],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    script = (tmp_path / ".bash_completions" / "qlora.sh").read_text()
    assert "_QLORA_COMPLETE=complete_bash" in script
    assert str(tmp_path / ".bash_completions" / "qlora.sh") in (tmp_path / ".bashrc").read_text()
    (tmp_path / "qlora").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qlora_client.cli "$@"\n')
    (tmp_path / "qlora").chmod(0o755)
    pressed = (
        '. "$HOME/.bashrc"; COMP_WORDS=(qlora show hai) COMP_CWORD=2; _qlora_completion qlora; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["/bin/bash", "-c", pressed],
        env={**os.environ, "HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}", "QLORAD_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("haiku\n", "")
