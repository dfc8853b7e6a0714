"""What a shell completes, and that it does so at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_client.completion import MOST, event_names, job_ids

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


def complete(home: Path, *words: str) -> list[str]:
    """What bash offers for the last of these words."""
    asked = {"_QLORA_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "qlora_client.cli"],
        env={**os.environ, "QLORAD_HOME": str(home), **asked},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_a_shell_completes_ids_states_and_events(home: Path) -> None:
    """All three ways that a command names something."""
    assert complete(home, "qlora", "show", "20261121") == [JOBS[0]]
    assert complete(home, "qlora", "ls", "--state", "ru") == ["running"]
    assert complete(home, "qlora", "logs", "--event", "queue.pa") == ["queue.paused"]


def test_completion_can_be_installed(tmp_path: Path) -> None:
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
