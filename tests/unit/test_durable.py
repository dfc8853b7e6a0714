"""Files are replaced whole or not at all, and lines of several writers never mix."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_engine.job import durable
from qlora_engine.job.durable import AppendOnly


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    """With its content and nothing left beside it."""
    path = tmp_path / "state.json"
    durable.write_json(path, {"a": "ü"})
    assert path.read_text() == '{\n  "a": "ü"\n}\n'
    durable.write_bytes(path, b"x" * 3_000_000, mode=0o600)
    assert path.stat().st_size == 3_000_000
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["state.json"]


def test_a_file_name_that_is_not_utf8_can_be_recorded(tmp_path: Path) -> None:
    """A job's data may lie in a folder of any name."""
    name = os.fsdecode(b"caf\xe9")
    durable.write_json(tmp_path / "spec.json", {"path": name})
    assert json.loads((tmp_path / "spec.json").read_bytes())["path"] == name


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk may cost the new record, never the old one."""
    path = tmp_path / "state.json"
    durable.write_text(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "sync_file", full)
    with pytest.raises(OSError, match="space"):
        durable.write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["state.json"]


WRITER = """
import sys
from pathlib import Path
from qlora_engine.job import durable
number = 0
while True:
    number += 1
    durable.write_json(Path(sys.argv[1]), {"number": number, "filling": "x" * 100_000})
    print(number, flush=True)
"""


def test_a_kill_leaves_the_old_content_or_the_new(tmp_path: Path) -> None:
    """What a reader finds is whole, and no older than what was acknowledged."""
    path = tmp_path / "state.json"
    for lines in (3, 10, 25):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        said += process.communicate(timeout=10)[0].splitlines()
        found = json.loads(path.read_text())
        assert int(said[-1]) <= found["number"] <= int(said[-1]) + 1
        assert len(found["filling"]) == 100_000


def test_moving_is_renaming(tmp_path: Path) -> None:
    """Across folders of one disk."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "x").write_text("x")
    durable.move(tmp_path / "a" / "x", tmp_path / "b" / "y")
    assert (names(tmp_path / "a"), names(tmp_path / "b")) == ([], ["y"])


def test_a_torn_last_line_takes_no_other_with_it(tmp_path: Path) -> None:
    """A crash may cost its own line, not the one after it."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": 1}\n{"eve')
    file = AppendOnly(path)
    file.write_line('{"event": 2}')
    file.sync()
    file.close()
    file.close()
    assert path.read_bytes() == b'{"event": 1}\n{"eve{"event": 2}\n{"event": 2}\n'
    file = AppendOnly(path)
    file.write_line('{"event": 3}')
    file.close()
    assert path.read_bytes().splitlines()[2:] == [b'{"event": 2}', b'{"event": 3}']


def test_an_empty_and_a_missing_file_get_no_blank_line(tmp_path: Path) -> None:
    """Nothing is torn there."""
    for name in ("none", "empty"):
        path = tmp_path / name
        if name == "empty":
            path.touch()
        file = AppendOnly(path)
        file.write_line("ü")
        file.close()
        assert path.read_text() == "ü\n"


APPENDER = """
import sys
from pathlib import Path
from qlora_engine.job.durable import AppendOnly
for number in range(400):
    if number % 4 == 0:  # one who comes while another writes sees the file's end inside a line
        file = AppendOnly(Path(sys.argv[1]))
    file.write_line(sys.argv[2] * (1 + number * 7 % 5000) + f" {number}")
"""


def test_lines_of_several_writers_do_not_mix(tmp_path: Path) -> None:
    """The daemon and the training process write to the same events.jsonl."""
    path = tmp_path / "events.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", APPENDER, str(path), letter]) for letter in "abc"]
    for writer in writers:
        assert writer.wait(timeout=30) == 0
    lines = path.read_text().splitlines()
    assert len(lines) == 1200
    for letter in "abc":
        mine = [line for line in lines if line[0] == letter]
        assert [int(line.split()[1]) for line in mine] == list(range(400))
        assert all(set(line.split()[0]) == {letter} for line in mine)


def test_a_line_that_was_written_in_part_is_an_error_and_the_next_is_whole(tmp_path: Path) -> None:
    """On a full disk `write` may take a part of a line; the next line may not be glued to it."""
    path = tmp_path / "events.jsonl"
    script = (
        "import resource, signal, sys; from pathlib import Path; from qlora_engine.job.durable import AppendOnly\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "file = AppendOnly(Path(sys.argv[1])); file.write_line('a' * 10)\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (15, hard))\n"
        "try:\n    file.write_line('b' * 10)\nexcept OSError as error:\n    print('refused')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)); file.write_line('c')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "refused\n"
    assert path.read_text().splitlines() == ["a" * 10, "b" * 4 + "c", "c"]


def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    """A daemon writes for months."""
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(20):
        durable.write_text(tmp_path / "x", "y")
        file = AppendOnly(tmp_path / "z")
        file.write_line("y")
        file.close()
    assert len(list(Path("/dev/fd").iterdir())) == before
