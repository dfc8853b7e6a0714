"""Fixtures for tests of the whole: the real daemon, the real worker, real training processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import tiny
from support.service import REAL, Daemon, daemon_in, short_home

Qlora = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A real daemon in a home of its own, started."""
    with short_home() as home, daemon_in(home, module=REAL) as found:
        found.start()
        yield found


@pytest.fixture
def qlora(daemon: Daemon) -> Qlora:
    """The client's command line, in the daemon's home."""

    def run(*arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "qlora_client.cli", *arguments],
            env=daemon.environment | {"HOME": os.environ.get("HOME", "/")},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny 4-bit model with random weights."""
    return tiny.make_model(tmp_path_factory.mktemp("model"))
