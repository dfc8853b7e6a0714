"""Tokens kept on disk are those that were made, or there are none."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qlora_engine.job.errors import SystemRefused
from qlora_engine.training.encode import Encoded
from qlora_engine.training.token_cache import TokenCache
from qlora_engine.training.token_key import TokenKey
from qlora_engine.training.token_rows import TokenRows
from support.token_rows import KEY, content, memory, rows

GIGA = 10**9


def named(name: str) -> TokenKey:
    return replace(KEY, data=name)


@pytest.fixture
def cache(quick_path: Path) -> TokenCache:
    return TokenCache(quick_path / "tokens", GIGA)


def entries(cache: TokenCache) -> set[str]:
    """What lies in the folder but its lock."""
    return {path.name for path in cache.folder.iterdir() if path.is_dir()}


def test_what_is_kept_is_what_was_made(cache: TokenCache) -> None:
    """A token more or less and the second start trains another model."""
    assert cache.find(KEY) is None
    made = cache.keep(KEY, rows())
    assert made.spool.failure is None
    found = cache.find(KEY)
    assert content(found) == content(made) == content(memory())
    assert found is not None
    for name in ("starts", "targets", "highest", "checks"):
        assert np.array_equal(getattr(found.index, name), getattr(made.index, name)), name
    assert isinstance(found.index.starts, np.memmap)
    assert entries(cache) == {KEY.name}


def test_no_rows_at_all_can_be_kept(cache: TokenCache) -> None:
    """Nothing is a case of something."""
    cache.keep(KEY, iter(()))
    assert content(cache.find(KEY)) == []


# Damage


def spoil(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("index.bin", "flip"),
        ("index.bin", "cut"),
        ("index.bin", "delete"),
        ("rows.bin", "cut"),
        ("rows.bin", "longer"),
        ("rows.bin", "delete"),
        ("manifest.json", "cut"),
        ("manifest.json", "delete"),
        ("lock", "delete"),
    ],
)
def test_damage_that_can_be_seen_at_the_start_makes_the_tokens_anew(cache: TokenCache, name: str, how: str) -> None:
    """A copy that went wrong, a disk that lies, a folder that was half deleted: none may reach training."""
    cache.keep(KEY, rows())
    path = cache.folder / KEY.name / name
    match how:
        case "flip":
            spoil(path, 100)
        case "cut":
            os.truncate(path, path.stat().st_size - 3)
        case "longer":
            path.write_bytes(path.read_bytes() + b"\0")
        case "delete":
            path.unlink()
    assert cache.find(KEY) is None
    cache.keep(KEY, rows())
    assert content(cache.find(KEY)) == content(memory())


def test_a_damaged_row_is_never_trained_on(cache: TokenCache) -> None:
    """One bit in a token, or in what says that it is a target; the next start is whole again."""
    cache.keep(KEY, rows())
    index = memory().index
    spoil(cache.folder / KEY.name / "rows.bin", 5 * int(index.starts[7]) + 4)
    found = cache.find(KEY)
    assert found is not None
    expected = content(memory())
    assert [found.read(row)[0].tolist() for row in range(7)] == [tokens for tokens, _ in expected[:7]]
    with pytest.raises(SystemRefused, match="row 8 is not what was written") as caught:
        found.read(7)
    assert caught.value.remedy
    assert entries(cache) == set()


def test_rows_cut_off_while_they_are_in_use_are_an_error(cache: TokenCache) -> None:
    """Under a mapping the same would be SIGBUS, which ends the process without a word."""
    cache.keep(KEY, rows())
    found = cache.find(KEY)
    assert found is not None
    os.truncate(cache.folder / KEY.name / "rows.bin", 10)
    with pytest.raises(SystemRefused, match="row 50"):
        found.read(49)


# Others


def test_rows_in_use_may_be_deleted(cache: TokenCache) -> None:
    """A user may clear a cache at any time."""
    cache.keep(KEY, rows())
    found = cache.find(KEY)
    shutil.rmtree(cache.folder)
    assert content(found) == content(memory())
    assert cache.find(KEY) is None
    cache.keep(KEY, rows())
    assert content(cache.find(KEY)) == content(memory())


def test_two_may_write_one_key_at_once(cache: TokenCache) -> None:
    """Admission and training may tokenize the same file at the same time."""
    inner: list[TokenRows] = []

    def interrupted() -> Iterator[Encoded]:
        for number, row in enumerate(rows()):
            if number == 25:
                inner.append(cache.keep(KEY, rows()))
            yield row

    outer = cache.keep(KEY, interrupted())
    assert content(outer) == content(inner[0]) == content(cache.find(KEY)) == content(memory())
    assert entries(cache) == {KEY.name}


def test_a_row_that_is_refused_leaves_nothing(cache: TokenCache) -> None:
    """A part of a file is no file."""

    def refused() -> Iterator[Encoded]:
        yield from rows(10)
        raise ValueError("row 11")

    with pytest.raises(ValueError, match="row 11"):
        cache.keep(KEY, refused())
    assert entries(cache) == set()


KILLED = """
import os, signal, sys
from pathlib import Path
from qlora_engine.training.token_cache import TokenCache
from support.token_rows import KEY, rows

def killed():
    yield from rows(30)
    os.kill(os.getpid(), signal.SIGKILL)

TokenCache(Path(sys.argv[1]), 10**9).keep(KEY, killed())
"""


def test_what_a_killed_process_left_is_neither_used_nor_kept(cache: TokenCache) -> None:
    """A kill at any moment costs its own work and no disk space for ever."""
    paths = os.pathsep.join(str(Path(part).absolute()) for part in sys.path if part)
    command = [sys.executable, "-P", "-c", KILLED, str(cache.folder)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    (left,) = entries(cache)
    assert left.startswith(".tmp-")
    assert cache.find(KEY) is None
    cache.keep(KEY, rows())
    assert entries(cache) == {KEY.name}


# Room


def touched(cache: TokenCache, name: str, when: int) -> None:
    os.utime(cache.folder / named(name).name / "manifest.json", (when, when))


def test_what_was_not_used_for_longest_goes_first(quick_path: Path) -> None:
    """A limit that nobody keeps fills the disk, and the tokens of today's job are not the ones to go."""
    one = sum(path.stat().st_size for path in sized(TokenCache(quick_path / "probe", GIGA)).glob("*.bin"))
    cache = TokenCache(quick_path / "tokens", int(3.5 * one))
    for when, name in enumerate("abc", 1):
        cache.keep(named(name), rows())
        touched(cache, name, when)
    cache.find(named("a"))  # which makes it the newest
    cache.keep(named("d"), rows())
    assert entries(cache) == {named(name).name for name in "acd"}
    TokenCache(cache.folder, 1).keep(named("e"), rows())
    assert entries(cache) == {named("e").name}


def sized(cache: TokenCache) -> Path:
    cache.keep(KEY, rows())
    return cache.folder / KEY.name


def test_what_is_in_use_stays(cache: TokenCache) -> None:
    """A job that is stopped tonight must find its tokens tomorrow."""
    cache.keep(named("a"), rows())
    used = cache.find(named("a"))
    tight = TokenCache(cache.folder, 1)
    tight.keep(named("b"), rows())
    assert named("a").name in entries(cache)
    del used
    tight.keep(named("c"), rows())
    assert entries(cache) == {named("c").name}


# A disk that does not take them


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to let a file grow beyond, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [100, 2_000_000, 6_299_999])
def test_a_disk_that_is_full_costs_memory_and_no_job(cache: TokenCache, room: int) -> None:
    """At the first bytes, in the middle, and at the last: whatever was written is taken back into memory."""
    long = [Encoded(list(range(20_000)), np.ones(20_000, np.bool_)) for _ in range(63)]  # 6.3 MB
    with files_of_at_most(room):
        made = cache.keep(KEY, iter(long))
    assert made.spool.failure is not None
    assert entries(cache) == set()
    assert len(made) == 63
    assert all(made.read(row)[0].tolist() == long[row].tokens for row in (0, 19, 20, 40, 62))


def test_an_index_that_does_not_fit_gives_up_the_file(cache: TokenCache) -> None:
    """Short rows have an index that is larger than they are."""
    short = [Encoded([row], np.zeros(1, np.bool_)) for row in range(5000)]
    with files_of_at_most(30_000):  # 25,000 for the rows, 100,008 for the index
        made = cache.keep(KEY, iter(short))
    assert made.spool.failure is not None
    assert entries(cache) == set()
    assert [made.read(row)[0].tolist() for row in (0, 4999)] == [[0], [4999]]


def test_a_place_that_cannot_be_written_costs_memory_and_no_job(tmp_path: Path) -> None:
    """A home on a read-only disk still trains."""
    (tmp_path / "file").write_text("no folder")
    cache = TokenCache(tmp_path / "file" / "tokens", GIGA)
    assert cache.find(KEY) is None
    made = cache.keep(KEY, rows())
    assert made.spool.failure is not None
    assert content(made) == content(memory())


def test_the_manifest_says_what_it_was_made_of(cache: TokenCache) -> None:
    """Whoever looks into the folder can tell whose tokens these are."""
    cache.keep(KEY, rows())
    manifest = json.loads((cache.folder / KEY.name / "manifest.json").read_text())
    assert manifest["rows"] == 50
    assert manifest["made_from"] == KEY.as_json()
    assert KEY.name == hashlib.sha256(json.dumps(KEY.as_json(), sort_keys=True).encode()).hexdigest()
