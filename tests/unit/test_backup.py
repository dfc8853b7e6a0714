"""What can be made again stays out of backups and search on a Mac, and nothing of it matters to training."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_daemon.mail import Message, UpkeepFailed
from qlora_daemon.upkeep import Upkeep
from qlora_engine.host import backup
from qlora_engine.job.errors import ProgramFailed
from qlora_engine.job.folder import Home
from support.recorded import Recorded, install, on_path
from support.service import wait_until

Said = list[Message]


@pytest.fixture
def tmutil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """A Mac's."""
    found = install(tmp_path / "bin", "tmutil")
    monkeypatch.setenv("PATH", on_path(tmp_path / "bin"))
    return found


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "h")
    home.make()
    return home


def begin(home: Home) -> tuple[Upkeep, Said]:
    said: Said = []
    upkeep = Upkeep(home, keep_rejected=5, post=said.append)
    upkeep.begin()
    return upkeep, said


def end(upkeep: Upkeep) -> None:
    """Wait until all that was asked for is done."""
    upkeep._tasks.put(None)
    upkeep.join(20)
    assert not upkeep.is_alive()


def test_a_folder_is_left_out_and_says_so(tmp_path: Path, tmutil: Recorded) -> None:
    """By a mark on the folder itself, which needs no root and goes with it when it is moved."""
    (tmp_path / "models").mkdir()
    assert backup.is_here()
    assert not backup.is_excluded(tmp_path / "models")
    backup.exclude(tmp_path / "models")
    backup.exclude(tmp_path / "models")
    assert backup.is_excluded(tmp_path / "models")
    assert tmutil.state["excluded"] == [str(tmp_path / "models")]
    tmutil.check()


def test_models_tokens_and_every_runs_checkpoints_are_left_out(home: Home, tmutil: Recorded) -> None:
    """Gigabytes that Time Machine would copy each hour; the results, records and reports are small and stay in."""
    checkpoints = home.run("20261122-143501-a").checkpoints
    checkpoints.mkdir(parents=True)
    upkeep, said = begin(home)
    upkeep.leave_out_of_backups(checkpoints)
    upkeep.leave_out_of_backups(checkpoints)  # at each checkpoint
    end(upkeep)
    folders = (home.models, home.tokens.parent, home.state, checkpoints)
    assert tmutil.state["excluded"] == list(map(str, folders))
    for folder in (home.models, home.tokens.parent, home.runs):
        assert (folder / backup.NEVER_INDEX).exists()
    assert said == []
    tmutil.check()


def test_a_refusal_is_said_and_nothing_else(home: Home, tmutil: Recorded) -> None:
    """macOS may ask for a permission that nobody is there to give."""
    tmutil.change(refuses=True)
    upkeep, said = begin(home)
    end(upkeep)
    assert [type(message) for message in said] == [UpkeepFailed] * 3
    assert "requires Full Disk Access" in str(said[0])
    assert (home.runs / backup.NEVER_INDEX).exists()
    with pytest.raises(ProgramFailed, match="does not say what it backs up"):
        backup.is_excluded(home.models)


def test_a_tmutil_that_hangs_holds_up_nothing(home: Home, tmutil: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the backup daemon, and for a disk that is being unplugged."""
    monkeypatch.setattr(backup, "TMUTIL_SECONDS", 0.2)
    tmutil.change(hangs=60.0)
    upkeep, said = begin(home)
    wait_until("it has given up", lambda: len(said) == 3)
    end(upkeep)
    assert "did not end within 0.2 s" in str(said[0])


def test_elsewhere_nothing_is_marked(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux has neither, and no user wants stray files there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    upkeep, said = begin(home)
    upkeep.leave_out_of_backups(home.runs)
    end(upkeep)
    assert said == []
    assert list(home.runs.iterdir()) == []
    assert not home.models.exists()
