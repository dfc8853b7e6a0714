"""Opening a report: on a desktop by itself, anywhere else only when asked."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path

import pytest

from qlora_client import desktop
from qlora_client.cli import main
from qlora_engine.job import report_process
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State


@pytest.mark.parametrize(
    ("platform", "environment", "seen"),
    [
        ("darwin", {}, True),
        ("darwin", {"SSH_CONNECTION": "10.0.0.2 50000 10.0.0.1 22"}, False),
        ("linux", {}, False),
        ("linux", {"DISPLAY": ":0"}, True),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("linux", {"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "10.0.0.2 50000 10.0.0.1 22"}, False),
    ],
)
def test_a_desktop_is_where_somebody_sees_it(
    monkeypatch: pytest.MonkeyPatch, platform: str, environment: dict[str, str], seen: bool
) -> None:
    """Over ssh a browser would open in front of nobody, and without a display in the middle of the terminal."""
    for name in ("SSH_CONNECTION", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert desktop.has_desktop() is seen


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pages that are opened, on a desktop, of a home with one job."""
    pages: list[str] = []
    monkeypatch.setenv("QLORAD_HOME", str(tmp_path))
    monkeypatch.setattr(desktop, "has_desktop", lambda: True)
    monkeypatch.setattr(webbrowser, "open", lambda address: pages.append(address) or True)
    monkeypatch.setattr(report_process, "write_report", lambda run: run.report)
    run = RunFolder(tmp_path / "runs" / "20261122-143501-sql")
    run.path.mkdir(parents=True)
    JobRecord.new(run.id, "sql").moved(State.QUEUED).store(run.state)
    return pages


@pytest.mark.parametrize(
    ("arguments", "terminal", "opens"),
    [
        ([], True, True),
        ([], False, False),
        (["--no-open"], True, False),
        (["--open"], False, True),
        (["--json"], True, False),
    ],
)
def test_a_report_is_opened_for_a_person(
    opened: list[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], terminal: bool, opens: bool
) -> None:
    """A script that collects reports must not open a hundred pages."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert main(["report", "sql", *arguments]) == 0
    assert [page.endswith("/20261122-143501-sql/report.html") for page in opened] == [True] * opens
