"""What lies in the watched folder is taken when it is at rest, and only if it is ours to take."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_daemon.settling import Decision, Found, Kind, decide, is_passing, look, problem_of
from qlora_daemon.writers import being_written

SETTLE = 2.0


def found(name: str, kind: Kind = Kind.FILE, *, size: int = 10, job_file: str | None = None) -> Found:
    return Found(Path("/jobs") / name, kind, size, 1, job_file)


def after(what: Found, quiet: float, *, written: bool = False) -> Decision:
    return decide(what, quiet=quiet, written=written, settle=SETTLE)


@pytest.mark.parametrize("name", ["a.yaml", "a.yml", "a.json", "a.toml", "A.YAML", "my job.yaml"])
def test_a_job_file_is_taken_when_it_has_settled(name: str) -> None:
    """Bytes that are still arriving are not a job yet."""
    assert after(found(name), 1.9) is Decision.WAIT
    assert after(found(name), 2.0) is Decision.TAKE
    assert after(found(name), 60.0, written=True) is Decision.WAIT


@pytest.mark.parametrize(
    "name",
    [
        ".hidden.yaml", "._a.yaml", ".DS_Store", "a.yaml~", ".a.yaml.icloud", "a.yaml.swp", ".a.yaml.swo", "4913",
        "a.yaml.crdownload", "a.yaml.part", "a.yaml.partial", "a.yaml.download", "a.yaml.tmp", "a.tmp1", "#a.yaml#",
        "accepted", "rejected", ".taking",
    ],
)  # fmt: skip
def test_what_programs_use_while_they_work_is_left_alone(name: str) -> None:
    """Taking a temporary file breaks the save or the download that it belongs to."""
    assert is_passing(name)
    assert after(found(name), 1e6) is Decision.LEAVE


@pytest.mark.parametrize("name", ["tmp.yaml", "part.yaml", "a.part.yaml", "rejected.yaml", "download.json"])
def test_a_job_may_be_called_like_a_temporary(name: str) -> None:
    """Only the ending makes a temporary."""
    assert after(found(name), SETTLE) is Decision.TAKE


def test_a_folder_is_a_job_only_with_a_job_file() -> None:
    """Data may be put there first; who drops a folder of pictures by mistake keeps it."""
    assert after(found("data", Kind.FOLDER), 1e6) is Decision.LEAVE
    assert after(found("job", Kind.FOLDER, job_file="job.yaml"), SETTLE) is Decision.TAKE


@pytest.mark.parametrize(
    ("what", "word"),
    [
        (found("a.txt"), "`.txt`"),
        (found("README"), "no ending"),
        (found("a.yaml", size=0), "empty"),
        (found("a.yaml", Kind.OTHER), "regular"),
        (found("a", Kind.CLOSED), "cannot be read"),
    ],
)
def test_what_is_no_job_is_given_time_and_then_a_reason(what: Found, word: str) -> None:
    """An empty file is often the first moment of a full one."""
    assert after(what, 9.9) is Decision.WAIT
    assert after(what, 10.0) is Decision.REJECT
    assert word in str(problem_of(what))


def test_a_link_is_turned_away_soon() -> None:
    """Following it would read, and move, a file that nobody dropped."""
    assert after(found("a.yaml", Kind.LINK), SETTLE) is Decision.REJECT


def test_looking_sees_every_change(tmp_path: Path) -> None:
    """Each of these is a step of a copy that is under way."""
    seen = []

    def see() -> None:
        what = look(tmp_path / "job")
        assert what not in seen
        seen.append(what)

    see()
    (tmp_path / "job").mkdir()
    see()
    (tmp_path / "job" / "job.yaml").write_text("")
    see()
    (tmp_path / "job" / "data").mkdir()
    see()
    (tmp_path / "job" / "data" / "train.jsonl").write_text("{")
    see()
    with (tmp_path / "job" / "data" / "train.jsonl").open("a") as file:
        file.write("}")
    see()
    os.utime(tmp_path / "job" / "data" / "train.jsonl", (1, 1))
    see()
    (tmp_path / "job" / "data" / "train.jsonl").rename(tmp_path / "job" / "data" / "valid.jsonl")
    see()


def test_looking_tells_what_kind_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device or a pipe would block whoever opens it."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        server.bind("socket")
        kinds = {name: what.kind for name in ("file", "link", "pipe", "socket") if (what := look(tmp_path / name))}
    assert kinds == {"file": Kind.FILE, "link": Kind.LINK, "pipe": Kind.OTHER, "socket": Kind.OTHER}
    assert look(tmp_path / "gone") is None


def test_a_writer_is_seen_and_a_reader_is_not(tmp_path: Path) -> None:
    """A copy that stalls is still a copy; a preview that reads must not keep a job from running."""
    path = tmp_path / "a.yaml"
    path.write_text("x")
    assert not being_written([path])
    hold = "import sys; f = open(sys.argv[1], sys.argv[2]); print(flush=True); sys.stdin.read()"
    for mode, expected in (("a", True), ("r+", True), ("r", sys.platform == "darwin")):
        with subprocess.Popen(
            [sys.executable, "-c", hold, str(path), mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            assert (path in being_written([path])) is expected
    assert not being_written([path])
