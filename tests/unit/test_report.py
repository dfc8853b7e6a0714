"""The report: one page that says what happened, from whatever the run folder holds."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from qlora_client.cli import main
from qlora_engine.job import report_process
from qlora_engine.job.errors import SystemRefused
from qlora_engine.job.events import Event, EventLog
from qlora_engine.job.folder import Home, RunFolder
from qlora_engine.job.report_process import ReportFailed, report_on
from qlora_engine.report.page import write_report
from qlora_engine.report.plots import loss_plot, small_plots
from qlora_engine.report.read import newest_branch, read_run
from qlora_engine.report.series import shorten, smoothed
from qlora_engine.report.summary import trained_seconds
from support.run_files import RunWriter, write_eventful_run

CANCELLED = {"state": "cancelled", "reason": "asked"}
KILLED = {"signal": "SIGKILL", "code": None}
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202e\x00'


class Page(HTMLParser):
    """What a browser sees of a page: text, elements, ids, addresses."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.ids, self.addresses, self.handlers = (
            "",
            set[str](),
            list[str](),
            set[str](),
            set[str](),
        )
        self._skipped = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._skipped = tag == "style"
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action", "data") and not (value or "").startswith("#"):
                self.addresses.add(value or "")
            if name.startswith("on"):
                self.handlers.add(name)

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._skipped = False


@pytest.fixture(scope="module")
def eventful(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return write_eventful_run(tmp_path_factory.mktemp("runs") / "20261122-143501-sql-assistant", steps=400)


def page_of(run: RunFolder) -> Page:
    return Page(write_report(run).read_text())


def test_the_report_tells_the_whole_run(eventful: RunFolder) -> None:
    """The page is what remains of a run: each part that is promised must be on it."""
    page = page_of(eventful)
    for said in (
        "sql-assistant", "done", "2.900 → 0.830", "18.17 → 2.29", "kept: best, step 360", "in 2 attempts",
        f"python -m mlx_lm generate --model /models/smollm2 --adapter-path {eventful.adapters}",
        "training, smoothed", "best: ", "gradient norm", "learning rate", "tokens a second", "limit",
        "dropped", "rolled back", "stalled", "out of memory", "stopped early", "checkpoint damaged",
        "Which singers are older than 30?", "I can help you with that!", "SELECT name FROM singers WHERE age > 30",
        "mask_prompt", "Apple M3 Pro", "0.32.4", "/data/train.jsonl", "rows cut at max_seq_length", "most recent call",
    ):  # fmt: skip
        assert said in page.text, said


def test_the_page_needs_no_network_and_runs_nothing(eventful: RunFolder) -> None:
    """It must open offline, years from now, and be safe to pass on."""
    page = page_of(eventful)
    assert page.addresses == set()
    assert not page.tags & {"script", "link", "iframe", "img", "object", "embed", "form"}
    assert len(page.ids) == len(set(page.ids)) > 100
    assert "prefers-color-scheme: dark" in eventful.report.read_text()


def test_what_came_with_the_run_cannot_act_on_the_page(tmp_path: Path) -> None:
    """Prompts, names and paths are anybody's text; a report is opened in a browser."""
    writer = RunWriter(tmp_path / "run", name="n" + HOSTILE[:70], model=HOSTILE, samples=[HOSTILE])
    for name in ("training.started", "model.loaded", "data.loaded", "training.resumed", "guard.dropped"):
        writer.event(name, step=1, path=HOSTILE, device=HOSTILE, format=HOSTILE, model=HOSTILE, place=HOSTILE)
    writer.event("sample.answered", when="before", prompt=HOSTILE, answer=HOSTILE + "\ud800", expected=HOSTILE)
    writer.event("training.stalled", phase=HOSTILE, stacks=HOSTILE)
    writer.event("training.failed", what=HOSTILE, where=HOSTILE, remedy=HOSTILE)
    writer.step(1, 2.0)
    page = page_of(writer.run)
    assert "<script>alert(1)</script>" in page.text
    assert not page.tags & {"script", "img"}
    assert not page.handlers
    assert not set("\x1b\u202e\x00") & set(page.text)


@pytest.mark.parametrize("missing", ["spec", "events", "metrics"])
def test_a_file_that_is_missing_or_damaged_costs_its_part_of_the_page_alone(tmp_path: Path, missing: str) -> None:
    """A report is wanted most when something went wrong."""
    run = write_eventful_run(tmp_path / "run", steps=40)
    path: Path = getattr(run, missing)
    path.unlink(missing_ok=True)
    assert "qlorad" in page_of(run).text
    path.write_bytes(
        b'{"event": []}\n{"event": "training.done", "step": "x", "loss_before": []}\n\x00\xff[[[{{{\n{"event": 5'
    )
    assert "qlorad" in page_of(run).text


def test_an_empty_folder_has_a_page_and_a_missing_one_an_error(tmp_path: Path) -> None:
    """`write_report` is called at any moment of a run."""
    assert "not started" in page_of(RunFolder(tmp_path)).text
    with pytest.raises(SystemRefused, match="cannot be written"):
        write_report(RunFolder(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("attempt", "first"), [(0, "environment.changed"), (2, "environment.changed"), (2, "ladder.rung")]
)
def test_the_pause_between_two_attempts_is_no_training(tmp_path: Path, attempt: int, first: str) -> None:
    """Also where the second says something before it begins: what the machine did meanwhile is not the job's."""
    writer = RunWriter(tmp_path / "run")
    writer.attempt = min(attempt, 1)
    writer.event("training.started")
    writer.event("environment.changed", seconds=60)  # what was chosen, in the midst of an attempt
    writer.event("training.report", seconds=540, step=10, steps=100)
    if attempt:
        writer.event("job.exited")
    writer.attempt = attempt
    writer.event(first, seconds=23 * 3600)
    writer.event(first)
    writer.event("training.started")
    writer.event("training.report", seconds=300, step=20, steps=100)
    writer.event("training.done")
    writer.event("kernels.kept", seconds=50)
    assert trained_seconds(read_run(writer.run)) == 60 + 540 + 300 + 1


@pytest.mark.parametrize("attempt", [0, 1])
def test_the_time_until_memory_ran_out_is_training(tmp_path: Path, attempt: int) -> None:
    """Said by the attempt that ran out of it, as its last word."""
    writer = RunWriter(tmp_path / "run")
    writer.attempt = attempt
    writer.event("training.started")
    writer.event("job.outdone", seconds=40)
    writer.event("ladder.rung", seconds=60)
    writer.attempt = 2 * attempt
    writer.event("training.started", seconds=500)
    assert trained_seconds(read_run(writer.run)) == 100


def test_a_line_that_a_crash_cut_short_is_passed_over(tmp_path: Path) -> None:
    """A SIGKILL leaves half a line; the lines around it count."""
    writer = RunWriter(tmp_path / "run")
    writer.step(1, 2.0)
    with writer.run.metrics.open("a") as file:
        file.write('{"event": "training.step", "step": 2, "lo\n')
    writer.step(3, 1.0)
    assert read_run(writer.run).micro_batches["step"].tolist() == [1, 3]


def test_a_run_of_another_version_is_shown_as_far_as_it_is_known(tmp_path: Path) -> None:
    """Run folders outlive versions of qlorad."""
    writer = RunWriter(tmp_path / "run")
    job = json.loads(writer.run.spec.read_text())
    job["spec"] |= {"future_key": {"deep": True}, "iters": "many"}
    writer.run.spec.write_text(json.dumps(job))
    with writer.run.events.open("a") as file:
        file.write('{"event": "training.teleported", "step": {}}\n{"event": "training.report", "loss": "low"}\n')
        file.write('{"event": "guard.dropped"}\n{"event": "validation", "step": 3, "loss": 1.5}\n')
    page = page_of(writer.run)
    assert "future_key.deep" in page.text


def test_without_validation_the_training_loss_is_shown(tmp_path: Path) -> None:
    """Many data sets have no validation rows."""
    writer = RunWriter(tmp_path / "run")
    for step in range(1, 30):
        writer.step(step, 3.0 if step < 3 else 1.0)
    page = page_of(writer.run)
    assert "training loss" in page.text
    assert "3.000 → 1.0" in page.text


def test_losses_that_are_no_numbers_leave_gaps(tmp_path: Path) -> None:
    """The guard drops micro-batches whose loss is NaN, which JSON has no word for."""
    writer = RunWriter(tmp_path / "run")
    for step, loss in enumerate([2.0, None, 1e9, None, 1.5], 1):
        writer.step(step, loss)
    writer.event("validation", step=5, split="valid", loss=None, perplexity=None)
    page = page_of(writer.run)
    assert "training, smoothed" in page.text


def test_only_what_stands_is_drawn() -> None:
    """A resumed or rolled back run does steps again; the curve is that of the steps that made the adapters."""
    steps = np.array([1, 2, 3, 4, 5, 3, 4, 6, 7, 2, 3], np.float64)
    losses = np.arange(11, dtype=np.float64)
    kept = newest_branch({"step": steps, "loss": losses})
    assert kept["step"].tolist() == [1, 2, 3]
    assert kept["loss"].tolist() == [0, 9, 10]


def test_a_single_spike_survives_shortening() -> None:
    """What stands out is what one looks for in a long run."""
    step = np.arange(1.0, 100_001)
    value = np.ones(100_000)
    value[71_234], value[5] = 50.0, np.nan
    series = shorten(step, value)
    assert len(series) == 500
    assert series.high.max() == 50.0
    assert abs(series.step[series.high.argmax()] - 71_235) < 200
    assert series.mean.max() < 2


def test_smoothing_weighs_by_tokens() -> None:
    """A loss is a mean over tokens: a micro-batch of one token may not move the curve as one of a thousand."""
    step = np.arange(1.0, 101)
    value = np.where(step % 2 == 0, 1.0, 3.0)
    even = smoothed(step, value, np.where(step % 2 == 0, 999.0, 1.0)).mean
    assert abs(even[-1] - 1.0) < 0.01
    assert abs(smoothed(step, value, np.ones(100)).mean[-1] - 2.0) < 0.2


def test_a_run_of_200000_micro_batches_makes_a_small_page_soon(tmp_path: Path) -> None:
    """The page of a long run must open on a phone, and not hold up the end of the run."""
    writer = RunWriter(tmp_path / "run")
    line = (
        '{{"ts": "2026-11-22T14:35:01.000+00:00", "level": "debug", "event": "training.step", "job": "j", "attempt": 1,'
        ' "step": {0}, "steps": 200000, "loss": {1}.5, "tokens": 7{1}, "gradient_norm": 0.{1}, "memory_gb": 1.{1},'
        ' "peak_gb": 2.{1}, "cache_gb": 0.{1}, "process_gb": 3.{1}}}\n'
    )
    writer.run.metrics.write_text("".join(line.format(step, step * 7919 % 10) for step in range(1, 200_001)))
    started = time.process_time()
    write_report(writer.run)
    assert time.process_time() - started < 10  # about 2.5 s; the rest is for machines that are busy
    assert writer.run.report.stat().st_size < 1_000_000


@pytest.mark.parametrize(
    ("events", "files", "state", "said"),
    [
        (["training.started", "training.done"], {}, "done", ""),
        (["training.started", "training.stopped"], {}, "stopped", ""),
        (["training.started", "training.failed"], {}, "failed", "The loss is NaN."),
        (["training.started", "training.stopped", "training.started"], {}, "running", ""),
        (["training.started", "training.stopped"], {"state": CANCELLED}, "cancelled", "asked"),
        (["training.started"], {"exit-1": KILLED}, "ended", "without a word: SIGKILL"),
        ([], {}, "not started", ""),
    ],
)  # fmt: skip
def test_the_head_says_how_the_run_ended(
    tmp_path: Path, events: list[str], files: dict[str, dict[str, object]], state: str, said: str
) -> None:
    """The first thing that a person wants to know."""
    writer = RunWriter(tmp_path / "run")
    for name in events:
        writer.event(name, **({"what": "The loss is NaN."} if name == "training.failed" else {}))
    for name, content in files.items():
        (writer.run.path / f"{name}.json").write_text(json.dumps(content))
    html = write_report(writer.run).read_text()
    assert f">{state}</span>" in html
    assert said in Page(html).text


def test_the_same_run_makes_the_same_plots(eventful: RunFolder) -> None:
    """A report that is written again differs only where the run does."""
    data = read_run(eventful)
    assert small_plots(data) == small_plots(data)
    assert loss_plot(data, []) == loss_plot(data, [])


def test_many_events_do_not_drown_the_table(tmp_path: Path) -> None:
    """A run may drop thousands of micro-batches; the page names the first and says where the rest is."""
    writer = RunWriter(tmp_path / "run")
    for step in range(1, 1001):
        writer.event("guard.dropped", step=step, place="loss", value="nan", rows=[step], in_a_row=1)
    writer.event("training.failed", what="The loss was not finite.")
    page = page_of(writer.run)
    assert "960 more are in events.jsonl" in page.text
    assert "The loss was not finite." in page.text


def test_the_writer_is_a_program_without_mlx(eventful: RunFolder) -> None:
    """It runs beside training and in the client's hands, where mlx would take memory and seconds."""
    code = (
        "import runpy, sys\nsys.argv = ['report', sys.argv[1]]\n"
        "try:\n    runpy.run_module('qlora_engine.report', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not {'mlx', 'mlx_lm', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(eventful.path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(eventful.report), "")


def test_another_folder_is_refused(tmp_path: Path) -> None:
    """A typing error may not leave a page in a folder that is no run."""
    command = [sys.executable, "-m", "qlora_engine.report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 65
    assert "is not a run folder" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_the_writer_refuses_is_told_once_and_with_its_remedy(tmp_path: Path) -> None:
    """`The report cannot be written: The report cannot be written: …` and nothing to do about it."""
    writer = RunWriter(tmp_path / "run")
    writer.run.report.mkdir()
    with pytest.raises(ReportFailed) as raised:
        report_process.write_report(writer.run)
    assert raised.value.what == "The report cannot be written: Is a directory."
    assert raised.value.remedy is not None
    assert raised.value.remedy.startswith("Name a run folder")


@pytest.mark.parametrize(
    ("said", "what", "remedy"),
    [
        (
            ["a list of fonts is made", '{"what": "No.", "where": "there", "remedy": "Do.", "exit_code": 65}'],
            "No.",
            "Do.",
        ),
        (["a list of fonts is made", "Traceback …", "KeyError: 'x'"], "a bug, KeyError: 'x'.", "report it: python -m"),
        (["{}"], "a bug, {}.", "report it: python -m"),
        ([], "its process ended with code -9.", "report it: python -m"),
    ],
    ids=["its error", "a bug", "something else", "nothing"],
)
def test_what_the_writer_has_said_last_is_told(tmp_path: Path, said: list[str], what: str, remedy: str) -> None:
    """A library may say something before."""
    error = report_process._failed(RunFolder(tmp_path), -9, said)
    assert error.what.endswith(what)
    assert remedy in str(error.remedy)


def test_the_end_of_a_run_says_where_its_report_is(tmp_path: Path) -> None:
    """A person who reads the log must find the page; one that fails may not fail the run."""
    writer = RunWriter(tmp_path / "run")
    events: list[Event] = []
    log = EventLog([events.append])
    writer.event("training.done", step=1)
    report_on(writer.run, log)
    report_on(RunFolder(tmp_path / "missing"), log)
    assert [event["event"] for event in events] == ["report.written", "report.failed"]
    assert events[0]["path"] == str(writer.run.report)
    assert "is not a run folder" in events[1]["what"]
    assert "done" in Page(writer.run.report.read_text()).text


def test_the_client_writes_the_report_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`qlora report ID` promises a report at any time, also of a job that failed or still trains."""
    home = Home(tmp_path / "home")
    run = write_eventful_run(home.run("20261122-143501-sql-assistant").path, steps=20)
    monkeypatch.setenv("QLORAD_HOME", str(home.path))
    assert main(["report", "sql"]) == 0
    assert capfd.readouterr().out.strip() == str(run.report)
    assert "sql-assistant" in run.report.read_text()
