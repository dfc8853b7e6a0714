"""Fixtures for tests with real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.service import Daemon, daemon_in, short_home


@pytest.fixture
def home() -> Iterator[Path]:
    """A home with a short path."""
    with short_home() as folder:
        yield folder


@pytest.fixture
def daemon(home: Path) -> Iterator[Daemon]:
    """A daemon whose training process is the stand-in; not started yet."""
    with daemon_in(home) as found:
        yield found


@pytest.fixture(scope="module")
def shared() -> Iterator[Daemon]:
    """A daemon that runs for all tests of a module: for those that do not end it."""
    with short_home() as folder, daemon_in(folder) as found:
        found.start()
        yield found
