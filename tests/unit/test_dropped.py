"""What `qlora ls` says of files that are no jobs: not taken yet, or not taken at all."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qlora_client.cli import main
from qlora_client.dropped import folder_notes
from qlora_engine.job.folder import Home

NOW = datetime(2026, 11, 22, 14, 35, 1, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.make()
    return home


def reject(home: Home, name: str, when: datetime) -> None:
    text = home.rejected / f"{name}.txt"
    text.touch()
    os.utime(text, (when.timestamp(), when.timestamp()))


def test_a_home_without_files_has_nothing_to_say(home: Home, tmp_path: Path) -> None:
    """A note that is always there is not read."""
    (home.jobs / ".hidden.yaml").touch()
    (home.jobs / "notes.txt").touch()
    (home.jobs / "rows").mkdir()
    assert folder_notes(home, None, NOW) == []
    assert folder_notes(Home(tmp_path / "none"), None, NOW) == []


def test_what_the_daemon_has_not_taken_yet_is_counted(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`There are no jobs yet` alone would tell somebody who has just dropped one that it is lost."""
    (home.jobs / "one.yaml").touch()
    (home.jobs / "two").mkdir()
    (home.jobs / "two" / "job.yaml").touch()
    (home.jobs / "three.1f0c.submission").touch()
    assert folder_notes(home, None, NOW) == [f"3 wait in {home.jobs} for the daemon to take them."]
    monkeypatch.setenv("QLORAD_HOME", str(home.path))
    assert main(["ls"]) == 0
    assert "3 wait in" in capsys.readouterr().err


def test_what_was_rejected_since_the_newest_job_is_named_with_the_text_that_says_why(home: Home) -> None:
    """It was dropped by somebody who looks for it in the list; what is older has been seen."""
    reject(home, "old.yaml", NOW - timedelta(hours=2))
    reject(home, "bad.yaml", NOW - timedelta(hours=1))
    says = [f"bad.yaml was rejected. Why: {home.rejected / 'bad.yaml.txt'}"]
    assert folder_notes(home, None, NOW) == says
    assert folder_notes(home, NOW - timedelta(hours=3), NOW) == says
    assert folder_notes(home, NOW - timedelta(minutes=1), NOW) == []
    assert folder_notes(home, None, NOW + timedelta(days=1)) == []
