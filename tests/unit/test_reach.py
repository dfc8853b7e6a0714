"""Reading folders that may not be there, not be ours, or not answer."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from qlora_engine.host.mounts import Mount, mount_of, mounts
from qlora_engine.host.reach import Answer, Reached, reach, reached


def test_what_can_be_read_is_told_from_what_is_missing(tmp_path: Path) -> None:
    """A person must learn which of the two it is."""
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n")
    missing = tmp_path / "none"
    found = reach([tmp_path, file, missing])
    assert {path: each.answer for path, each in found.items()} == {
        tmp_path: Answer.READABLE,
        file: Answer.READABLE,
        missing: Answer.MISSING,
    }
    assert (found[tmp_path].writable, found[tmp_path].owner) == (True, os.getuid())


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EPERM, Answer.DENIED),  # macOS, of a folder that nobody granted access to
        (errno.EACCES, Answer.DENIED),
        (errno.EIO, Answer.FAILED),
        (errno.ENOENT, Answer.MISSING),
    ],
)
def test_what_the_system_refuses_is_told_from_what_is_broken(number: int, expected: Answer) -> None:
    """One is granted in the settings, the other is a disk to be replaced."""
    about = {"path": "/x", "error": number, "why": os.strerror(number)}
    assert reached(about) == Reached(Path("/x"), expected, os.strerror(number))


def test_a_name_that_is_no_text_is_found_again(tmp_path: Path) -> None:
    """A disk may have been written by anybody."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    assert reach([folder])[folder].answer is Answer.READABLE


def test_what_hangs_does_not_keep_the_rest(tmp_path: Path) -> None:
    """A pipe that nobody writes to hangs in `open`, as a disk that is away does, and as a guarded folder may."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    begun = time.monotonic()
    found = reach([pipe, tmp_path], seconds=1.5)
    assert found[pipe].answer is Answer.HANGS
    assert found[pipe].why == "no answer within 1.5 s"
    assert found[tmp_path].answer is Answer.READABLE
    assert time.monotonic() - begun < 10


def test_nothing_is_asked_for_nothing() -> None:
    """Without jobs there are no data to look at, and no process is started."""
    assert reach([]) == {}


def test_a_path_lies_on_the_deepest_disk_that_holds_it() -> None:
    """`/Volumes/share` is a network's although `/` is not; and one mounted over another hides it."""
    places = [("/", "apfs"), ("/Volumes/a", "smbfs"), ("/Volumes/ab", "hfs"), ("/mnt", "ext4"), ("/mnt", "nfs4")]
    found = [Mount(Path(place), kind) for place, kind in places]
    kinds = {"/Users/me/qlora": "apfs", "/Volumes/a/home": "smbfs", "/Volumes/ab/home": "hfs", "/mnt/x": "nfs4"}
    for path, kind in kinds.items():
        mount = mount_of(Path(path), found)
        assert mount is not None
        assert mount.kind == kind
    assert mount_of(Path("/x"), []) is None


def test_this_machine_says_what_its_disks_are(tmp_path: Path) -> None:
    """The kernel's list can be read as it is."""
    assert mount_of(tmp_path.resolve(), mounts()) is not None
