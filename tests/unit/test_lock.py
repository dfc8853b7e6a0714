"""The lock between processes: one holder, named, and gone with its process."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qlora_engine.job.lock import LockHeld, acquire, held, holder_of

HOLDER = """
import sys, time
from pathlib import Path
from qlora_engine.job.lock import acquire
lock = acquire(Path(sys.argv[1]), {"pid": __import__("os").getpid(), "job": "theirs"})
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def other_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def test_a_held_lock_names_its_holder(tmp_path: Path) -> None:
    """`qlora status` and an error must say who trains."""
    path = tmp_path / "deep" / "gpu.lock"
    assert holder_of(path) is None
    with other_process(path) as process:
        holder = {"pid": process.pid, "job": "theirs"}
        assert holder_of(path) == holder
        with pytest.raises(LockHeld) as caught:
            acquire(path, {"job": "mine"})
        assert caught.value.holder == holder
        assert str(process.pid) in str(caught.value)
        assert str(path) in str(caught.value)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_goes_with_its_process(tmp_path: Path, number: signal.Signals) -> None:
    """A crashed training may not keep the GPU from the next."""
    path = tmp_path / "gpu.lock"
    with other_process(path) as process:
        process.send_signal(number)
        process.wait(timeout=10)
        assert holder_of(path) is None
        with held(path, {"job": "mine"}):
            assert holder_of(path) == {"job": "mine"}
    assert holder_of(path) is None


def test_waiting_ends_when_the_holder_does(tmp_path: Path) -> None:
    """Whoever tests the lock holds it for an instant; a start that fails for that is a job too late."""
    path = tmp_path / "gpu.lock"
    script = "import sys, time; time.sleep(0.3)"
    with other_process(path) as process:
        killer = subprocess.Popen([sys.executable, "-c", f"{script}; import os; os.kill({process.pid}, 9)"])
        lock = acquire(path, {"job": "mine"}, wait=20.0)
        killer.wait(timeout=10)
        assert holder_of(path) == {"job": "mine"}
        lock.release()


def test_waiting_has_an_end(tmp_path: Path) -> None:
    """`wait` is a limit."""
    path = tmp_path / "gpu.lock"
    with other_process(path):
        started = time.monotonic()
        with pytest.raises(LockHeld):
            acquire(path, {}, wait=0.3)
        assert 0.3 <= time.monotonic() - started < 5


def test_a_released_lock_is_free_and_released_twice_is_released_once(tmp_path: Path) -> None:
    """A second release may not close a descriptor that belongs to somebody else by then."""
    path = tmp_path / "gpu.lock"
    lock = acquire(path, {"job": "a"})
    lock.release()
    assert holder_of(path) is None
    with path.open() as other:
        lock.release()
        assert other.readable()
        os.fstat(other.fileno())


def test_a_deleted_lock_file_makes_no_second_holder_of_the_new_one(tmp_path: Path) -> None:
    """A lock on a deleted file keeps nobody out, so the file that is locked must be the one that is there."""
    path = tmp_path / "gpu.lock"
    with held(path, {"job": "first"}):
        path.unlink()
        with held(path, {"job": "second"}):
            assert holder_of(path) == {"job": "second"}
            assert path.exists()
            with pytest.raises(LockHeld):
                acquire(path, {"job": "third"})


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_a_holder_that_has_not_named_itself_is_a_holder(tmp_path: Path, content: bytes) -> None:
    """It may be read between its lock and its name."""
    path = tmp_path / "gpu.lock"
    with held(path, {"job": "mine"}):
        path.write_bytes(content)
        assert holder_of(path) == {}
        with pytest.raises(LockHeld, match="not named itself"):
            acquire(path, {})


def test_a_child_process_does_not_inherit_the_lock(tmp_path: Path) -> None:
    """A helper that outlives the training would hold the GPU for it."""
    path = tmp_path / "gpu.lock"
    with held(path, {"job": "mine"}):
        child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        assert holder_of(path) is None
    finally:
        child.communicate(timeout=10)


def test_the_lock_of_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    """Not a lock that nobody holds."""
    (tmp_path / "file").write_text(json.dumps({}))
    with pytest.raises(OSError, match="file"):
        acquire(tmp_path / "file" / "gpu.lock", {})


def test_who_holds_a_lock_can_be_told_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that is mounted read-only every look at a daemon would be an error."""
    path, really_open = tmp_path / "lock", os.open

    def opened(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return really_open(path, flags, mode)

    with other_process(path) as process:
        monkeypatch.setattr(os, "open", opened)
        assert holder_of(path) == {"pid": process.pid, "job": "theirs"}
        process.kill()
        process.wait(timeout=10)
        assert holder_of(path) is None
        monkeypatch.undo()


def test_two_that_ask_who_holds_a_free_lock_do_not_meet_each_other(tmp_path: Path) -> None:
    """A client would wait for a daemon that does not run."""
    path = tmp_path / "lock"
    acquire(path, {"pid": 1}).release()
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # as holder_of holds it for an instant
        assert holder_of(path) is None
