"""The file that launchd gives for the daemon's complaints, which nothing else ever empties."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qlora_daemon.log import empty_if_large


@pytest.mark.parametrize(("size", "left"), [(100, 100), (101, 0)])
def test_it_is_emptied_once_it_is_large(tmp_path: Path, size: int, left: int) -> None:
    """A daemon that complains for months would fill the disk that it complains of."""
    path = tmp_path / "service.err"
    path.write_bytes(bytes(size))
    descriptor = os.open(path, os.O_WRONLY)
    os.lseek(descriptor, 0, os.SEEK_END)
    empty_if_large(descriptor, 100)
    os.write(descriptor, b"more")
    os.close(descriptor)
    assert path.read_bytes() == bytes(left) + b"more"


def test_a_pipe_stays_as_it_is() -> None:
    """In a terminal or under another supervisor there is nothing to empty."""
    reader, writer = os.pipe()
    empty_if_large(writer, 0)
    os.write(writer, b"x")
    assert os.read(reader, 9) == b"x"
    os.close(reader)
    os.close(writer)
