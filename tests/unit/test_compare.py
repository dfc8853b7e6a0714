"""`qlora compare`: what differs, what came of it, and curves that can be told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_client.cli import main
from qlora_client.compare.compared import Compared, best, differing
from qlora_client.compare.page import lines
from qlora_client.curve import Point
from qlora_engine.job.folder import Home
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from support.run_files import RunWriter

FIRST, SECOND = "20261122-143501-first", "20261122-143502-second"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("QLORAD_HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm-256color")
    for job_id, rate, floor in ((FIRST, 1e-4, 1.0), (SECOND, 5e-4, 0.5)):
        writer = RunWriter(tmp_path / "runs" / job_id, iters=100, learning_rate=rate, name=job_id[16:])
        JobRecord.new(job_id, job_id[16:]).moved(State.QUEUED).store(writer.run.state)
        for step in range(1, 101):
            writer.step(step, floor + 2 / step, peak_gb=2.5, tokens_per_second=100.0)
        writer.event("validation", step=0, split="valid", loss=3.0)
        writer.event("validation", step=50, split="valid", loss=floor)
        writer.event("validation", step=100, split="valid", loss=floor + 0.1)
    return Home(tmp_path)


def compared(letter: str, validation: float | None, **settings: Any) -> Compared:
    results = {"steps": 10, "best validation": validation, "last loss": None, "seconds": 75.0, "tokens/s": 1234.5}
    job_id = f"20261122-14350{ord(letter) - 96}-job"
    losses = [Point(step, 2.0 + ord(letter) / 100) for step in range(10)]
    return Compared(letter, job_id, "job", "done", settings, losses, (), results)


JOBS = [compared("a", 2.0, rank=8, **{"lora.keys": None}), compared("b", 1.5, rank=16), compared("c", None, rank=8)]


def test_only_what_differs_is_shown() -> None:
    """Fifty settings are the same; the one that is not explains the curves."""
    assert differing(JOBS) == {"rank": [8, 16, 8]}
    assert differing(JOBS[::2]) == {}


def test_names_and_places_are_no_difference_of_settings() -> None:
    """Every two jobs have other names."""
    assert differing([compared("a", 1.0, name="x", data="/a"), compared("b", 1.0, name="y", data="/b")]) == {}


def test_the_lowest_validation_is_the_best() -> None:
    """Of jobs that were not validated, nobody knows."""
    assert best(JOBS) is JOBS[1]
    assert best(JOBS[1:]) is None


@pytest.mark.parametrize("width", [80, 120])
def test_the_page_fits_a_terminal_and_needs_no_colours(width: int) -> None:
    """Each curve is drawn in its letter where colours are missing."""
    page = [line.plain for line in lines(JOBS, width, colours=False, dots=True)]
    assert max(map(len, page)) <= width
    assert "b  20261122-143502-job  done  lowest validation loss" in page
    assert any(line.split() == ["rank", "8", "16", "8"] for line in page)
    assert any(line.split() == ["best", "validation", "2.000", "1.500", "–"] for line in page)
    curves = "\n".join(page[-14:])
    assert all(letter in curves for letter in "abc")


def test_a_length_in_epochs_is_no_number_of_iterations(
    tmp_path: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """`iters` has its default then, which nobody has trained for."""
    RunWriter(tmp_path / "runs" / SECOND, epochs=3)
    assert main(["compare", "first", "second", "--json"]) == 0
    differ = json.loads(capsys.readouterr().out)["differ"]
    assert (differ["iters"], differ["epochs"]) == ([100, None], [None, 3])


def test_jobs_are_compared_as_their_folders_say(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """For programs: settings, results and curves, without a terminal's words."""
    assert home.runs.exists()
    assert main(["compare", "first", "second", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differ"] == {"learning_rate": [1e-4, 5e-4]}
    assert found["best"] == SECOND
    one = found["jobs"][0]
    assert one["results"]["best validation"] == 1.0
    assert one["results"]["last validation"] == 1.1
    assert (len(one["losses"]["step"]), one["validations"]["loss"]) == (100, [3.0, 1.0, 1.1])


def test_a_pipe_gets_the_table_without_the_curves(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """A drawing is for the eye."""
    assert home.runs.exists()
    assert main(["compare", "first", "second"]) == 0
    output = capsys.readouterr().out
    assert "learning_rate" in output
    assert "\x1b" not in output
    assert "┤" not in output


def test_a_plot_is_the_same_each_time(home: Home, tmp_path: Path) -> None:
    """A picture under version control must not change by itself."""
    assert home.runs.exists()
    for name in ("one.svg", "two.svg"):
        assert main(["compare", "first", "second", "--plot", str(tmp_path / name)]) == 0
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert FIRST in (tmp_path / "one.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["first"], 64, "One job alone cannot be compared"),
        (["first", FIRST], 64, "Name two different ones"),
        (["first", "nothing"], 66, "No job has an id"),
        (["first", "second", "--plot", "plot.txt"], 73, "names no kind of plot"),
        (["first", "second", "--plot", "/nowhere/plot.svg"], 73, "/nowhere cannot be written"),
    ],
)
def test_what_cannot_be_compared_is_said(
    home: Home, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    """One clear error, and its exit code."""
    assert home.runs.exists()
    assert main(["compare", *arguments]) == code
    assert says in capsys.readouterr().err


def test_a_run_that_a_newer_version_made_is_compared_by_its_losses(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """Settings that cannot be read are no reason to show nothing."""
    home.run(FIRST).spec.write_text('{"format": 99}')
    assert main(["compare", "first", "second", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["jobs"]) == 2
