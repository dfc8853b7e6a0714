"""A newcomer's first ten minutes with the real 135M model, from the wheel to an answer, in a terminal of 80 columns."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from newcomer.page import PAGE, recorded, without_the_machine, written
from qlora_engine.job.events import parse_line
from qlora_engine.job.folder import Home
from support.service import ROOT, short_home, wait_until

SECONDS = 600.0


@pytest.mark.slow
def test_ten_minutes_after_the_wheel_a_model_answers_as_it_was_taught() -> None:
    """Install, doctor, init, validate, submit, top, logs, try and report do what docs/first-job.md promises.

    And what tiny random models cannot show: real weights, a real tokenizer, a loss that falls.
    """
    with short_home() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "newcomer", "--short", "--home", str(folder)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests")}, capture_output=True, text=True, timeout=SECONDS,
            check=False,
        )  # fmt: skip
        if done.returncode == 69 and not os.environ.get("CI"):
            pytest.skip("the package index cannot be reached")
        assert done.returncode == 0, done.stdout + done.stderr
        home = Home(folder / "qlora")
        (run,) = home.runs.glob("[!.]*")
        events = [event for line in home.run(run.name).events.read_bytes().splitlines() if (event := parse_line(line))]
        loaded = next(event for event in events if event["event"] == "model.loaded")
        assert (loaded["bits"], loaded["dequantized"], loaded["quantized_on_load"]) == (4, True, False)
        losses = [event["loss"] for event in events if event["event"] == "validation"]
        assert losses[-1] < 0.85 * losses[0]
        assert home.run(run.name).report.exists()

        # The window of the daemon was closed, so it stops in order, and nothing of it is left.
        wait_until("the daemon has stopped", lambda: '"daemon.stopped"' in home.service_log.read_text())
        wait_until("nothing of it is left", lambda: not _processes(str(folder)), 10.0)
        assert "SIGHUP" in home.service_log.read_text()
        assert '"child.killed"' not in home.service_log.read_text()


def _processes(folder: str) -> list[psutil.Process]:
    return [
        process for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get("HOME") == folder
    ]  # fmt: skip


def test_the_tutorial_shows_what_was_recorded_and_nothing_of_the_machine() -> None:
    """What a person reads there must be what he gets; `make transcript` records it anew."""
    page = PAGE.read_text()
    steps = recorded(page)
    assert list(steps) == [
        "install", "doctor", "model", "init", "job-file", "validate", "daemon", "submit", "top", "logs", "ls", "show",
        "try", "report", "stop",
    ]  # fmt: skip
    assert all(lines for lines in steps.values())
    for line in (line for lines in steps.values() for line in lines):
        assert not any(part in line for part in ("://", "/home/", "/Users/", "/root", "/tmp", "\x1b")), line
    assert written(page, steps) == page


def test_a_recording_is_shortened_in_its_middle_and_loses_what_is_the_machines() -> None:
    """A page of 300 lines of output teaches nobody."""
    page = "<!-- recorded: logs 2+1 -->\n```text\nold\n```\n<!-- end -->\n"
    new = written(page, {"logs": [str(number) for number in range(9)]})
    assert recorded(new) == {"logs": ["0", "1", "…", "8"]}
    assert written(new, {"logs": ["a", "b", "c"]}) == page.replace("old", "a\nb\nc")
    lines = ["WARNING: Location 'file:///x' is ignored", "/home/me/qlora/jobs"]
    assert without_the_machine(lines, PAGE.parent / "/home/me") == ["~/qlora/jobs"]
