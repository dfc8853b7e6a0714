"""What reaches a terminal: harmless text, readable numbers, colours only where they are wanted."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from qlora_client.lines import styled_line
from qlora_client.live import LiveView, bar_facts
from qlora_client.progress import Progress, progress_of
from qlora_client.views import job_lines, job_view, make_console, model_lines, print_jobs
from qlora_engine.job.events import Event
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.models import ModelInfo
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from qlora_engine.job.text import duration, local_time, plain, plain_lines, size
from qlora_engine.job.vocabulary import EVENTS
from qlora_engine.job.wording import describe

JOB = "20261122-143501-sql"
HARMFUL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")
HOSTILE = "\x1b[31mred\x1b]0;title\x07\x9b2J[bold]\u202e\ud800\r\nnext"


def rendered(view: RenderableType, *, terminal: bool = False, no_color: bool = False) -> str:
    output = io.StringIO()
    Console(file=output, force_terminal=terminal, no_color=no_color, width=160, markup=False).print(view)
    return output.getvalue()


def test_no_line_of_a_table_ends_with_blanks_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    """`git diff` marks them, and `grep 'done$'` does not find what stands before them."""
    table = Table.grid(padding=(0, 2))
    table.add_row("state", "done")
    table.add_row("folder", "/a/long/path")
    table.add_row("", "")
    console = make_console()
    console.print(Group(Text("title"), table, Text()))
    console.print(Text("the end"))
    assert capsys.readouterr().out == "title\nstate   done\nfolder  /a/long/path\n\n\nthe end\n"


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        (HOSTILE, "red[bold] next"),
        ("\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bcreset, \x1b(0line drawing", "reset, line drawing"),
        ("torn sequence \x1b[", "torn sequence"),
        ("cuts \x9d0;title\x9c eight-bit ones", "cuts  eight-bit ones"),
        ("tab\tand\nbreak", "tab and break"),
        ("grüße → 日本", "grüße → 日本"),
    ],
)
def test_nothing_that_a_terminal_obeys_gets_through(text: str, harmless: str) -> None:
    """A job's name or a library's output could otherwise write to the clipboard, hide lines, or fake others."""
    assert plain(text) == harmless
    plain(text).encode()  # no halves of characters either


def test_long_text_is_cut() -> None:
    """One line of an events file can be megabytes; a terminal needs its beginning."""
    assert plain("x" * 100_000, 10) == "x" * 9 + "…"


def test_wanted_line_breaks_stay() -> None:
    """An error has three lines, what, where and remedy, two of them indented."""
    assert plain_lines("a\x1b[1m\n\n  b\r\nc") == "a\n\n  b\nc"


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("kind", sorted(EVENTS))
def test_every_event_has_a_line_whatever_its_fields_hold(kind: str, terminal: bool) -> None:
    """An events file of another version, or one that somebody wrote, must not end a view with an error."""
    values: list[object] = [None, HOSTILE, -1, 1e308, [], {"a": HOSTILE}, True]
    for value in values:
        event = {"ts": value, "level": value, "event": kind, "job": value} | dict.fromkeys(EVENTS[kind].fields, value)
        line = describe(event)
        assert line == plain(line) != ""
        text = rendered(styled_line(event, with_job=True), terminal=terminal)
        assert not HARMFUL.search(re.sub(r"\x1b\[[0-9;]*m", "", text))  # beside rich's own colours
    assert describe({"event": kind})


@pytest.mark.parametrize("kind", sorted(EVENTS))
def test_every_event_is_told_in_words(kind: str) -> None:
    """`request.received request=933433d6… kind=submit` is for machines."""
    assert not describe({"event": kind, **dict.fromkeys(EVENTS[kind].fields, "some")}).startswith(f"{kind} ")


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            {"event": "child.exited", "child": "worker", "code": -9, "seconds": 3.21},
            "worker ended with code -9 after 3.21 s",
        ),
        ({"event": "request.answered", "ok": False, "what": "no such key"}, "answered: no such key"),
        ({"event": "file.taken"}, "took ?"),
        (
            {"event": "job.state", "from": "queued", "to": "starting", "reason": "its turn"},
            "queued → starting: its turn",
        ),
        (
            {
                "event": "training.report",
                "step": 20,
                "steps": 80,
                "loss": 1.23456,
                "tokens_per_second": 131.4,
                "memory_gb": 1.5,
                "seconds_left": 200.0,
            },
            "step 20/80  loss 1.235  131 tokens/s  1.50 GB, 3 min 20 s left",
        ),
        (
            {"event": "validation", "step": 0, "split": "valid", "loss": 3.2, "perplexity": 24.5, "tokens": 793},
            "step 0: valid loss 3.200, perplexity 24.50 over 793 tokens",
        ),
        ({"event": "queue.paused", "until": None}, "the queue is paused"),
        ({"event": "of.another.version", "child": "worker", "delay": 1.0}, "of.another.version child=worker delay=1.0"),
    ],
)
def test_events_read_as_sentences(event: Event, line: str) -> None:
    """The log is for people; JSON is there for programs."""
    assert describe(event) == line


def records() -> list[JobRecord]:
    queued = JobRecord.new(JOB, "sql").moved(State.QUEUED, "waits for [its] turn")
    running = queued.moved(State.STARTING, attempt=1).moved(State.RUNNING).noting(step=20, steps=80)
    return [running, queued.model_copy(update={"reason": HOSTILE})]


def test_a_table_of_jobs_shows_state_and_progress() -> None:
    """`qlora ls` answers: what runs, how far is it, what waits and why."""
    text = rendered(Group(*job_lines(records())))
    assert JOB in text
    assert "running" in text
    assert "20/80" in text
    assert "red[bold] next" in text
    assert "\x1b" not in text


def test_a_narrow_terminal_gets_one_line_a_job() -> None:
    """Lines that break make a list unreadable; a cut reason is in `qlora show`."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=60)
    print_jobs(console, [job.noting(reason="word " * 39) for job in records()])
    assert len(output.getvalue().splitlines()) == 3


def test_one_job_shows_what_matters(tmp_path: Path) -> None:
    """`qlora show` answers: state and why, how far, how long still, what loss, which files."""
    run = RunFolder(tmp_path / JOB)
    run.adapters.mkdir(parents=True)
    (run.adapters / "adapters.safetensors").touch()
    reports: list[Event] = [
        {"event": "training.report", "step": step, "steps": 80, "loss": 3.0 - step / 20, "steps_per_second": 1.0}
        for step in (10, 20)
    ]
    text = rendered(job_view(records()[0], run, progress_of(reports), reports))
    for part in ("running", "step 20 of 80 (25%)", "1 min", "2.500 (10)  2.000 (20)", str(run.adapters), "attempts"):
        assert part in text
    assert "checkpoints" not in text.replace("checkpoint at", "")  # there are none


def test_a_job_that_went_back_shows_where_it_is(tmp_path: Path) -> None:
    """The record that is stored may be of before that, and further."""
    record = records()[0].noting(step=70, steps=80)
    text = rendered(job_view(record, RunFolder(tmp_path / JOB), Progress(step=40, steps=80), []))
    assert "step 40 of 80 (50%)" in text
    assert "step 70 of 80" in rendered(job_view(record, RunFolder(tmp_path / JOB), Progress(), []))


def test_a_failed_job_shows_the_remedy(tmp_path: Path) -> None:
    """A person who looks at a failed job wants to know what to do."""
    failed = records()[0].moved(State.FAILED, "no memory")
    progress = Progress(trouble=("It does not fit.", "step 3", "Use shorter sequences."))
    text = rendered(job_view(failed, RunFolder(tmp_path / JOB), progress, []))
    assert "Use shorter sequences." in text


def test_models_show_their_problem() -> None:
    """A folder that cannot be used must not look like a model."""
    model = ModelInfo("broken", Path("/m"), None, None, None, None, 0, None, None, "it holds no weights")
    assert "it holds no weights" in rendered(Group(*model_lines([model])))


def test_models_are_cut_at_the_edge_of_a_terminal_and_end_with_their_text() -> None:
    """In 40 columns a name says more than eight columns of two letters; and a pipe gets no blanks at the end."""
    model = ModelInfo("smollm2", Path("/m"), "llama", 30, 576, 4, 10**8, "a.gguf", "MIT", None)
    heading, line = [text.plain for text in model_lines([model])]
    assert heading.startswith("NAME     ARCHITECTURE  LAYERS")
    assert line == "smollm2  llama         30      576    4     100 MB  MIT      a.gguf"


def test_a_setting_that_is_none_is_told_with_or_without_the_nearest() -> None:
    """There may be none that is near."""
    unknown = {"event": "setting.unknown", "name": "QLORAD_HOM", "nearest": "QLORAD_HOME"}
    assert describe(unknown) == "QLORAD_HOM is no setting, and ignored (did you mean QLORAD_HOME?)"
    assert describe(unknown | {"nearest": None}) == "QLORAD_HOM is no setting, and ignored"


def test_one_is_not_many() -> None:
    """`1 updates` reads as if nobody had looked."""
    data = {"event": "data.loaded", "train": 1, "valid": 0, "tokens": 1, "supervised": 1, "steps": 1, "updates": 1}
    assert describe(data) == "data: 1 training row, 0 for validation, 1 token of which 1 are learned, 1 step, 1 update"
    assert describe({"event": "kernels.kept", "files": 1}).startswith("1 file of")
    assert describe({"event": "kernels.kept", "files": 2}).startswith("2 files of")


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe and NO_COLOR get no escape codes (https://no-color.org)."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    table = Group(*job_lines(records()))
    assert "\x1b[32m" in rendered(table, terminal=True)
    assert "\x1b[32m" not in rendered(table, terminal=True, no_color=True)
    assert "\x1b" not in rendered(table)


def test_a_pipe_cuts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """`qlora ls | grep` must see whole ids and reasons, however narrow the terminal beside it is."""
    reason = "word " * 39
    print_jobs(make_console(), [records()[0].noting(reason=reason)])
    assert reason.strip() in capsys.readouterr().out


def test_without_a_terminal_each_report_is_one_line() -> None:
    """A log of the demo must be readable: no bar, no line a micro-batch."""
    output = io.StringIO()
    report = {"event": "training.report", "step": 4, "steps": 8, "loss": 2.0}
    with LiveView(Console(file=output, width=200)) as view:
        for event in (report, {"event": "training.step", "step": 5, "steps": 8}, report | {"step": 8}):
            view.show(event)
    assert [text.split()[:2] for text in output.getvalue().splitlines()] == [["step", "4/8"], ["step", "8/8"]]
    assert view.progress.step == 8


def test_without_a_terminal_each_line_says_when_it_was() -> None:
    """`qlora logs -f` into a file says as much as `qlora logs` does."""
    output = io.StringIO()
    resumed = {"ts": "2026-11-22T14:35:01+00:00", "event": "queue.resumed"}
    with LiveView(Console(file=output, width=200)) as view:
        view.show(resumed)
    assert output.getvalue() == f"{styled_line(resumed, with_job=False).plain}\n"


def test_on_a_terminal_the_bar_shows_the_numbers() -> None:
    """Step, loss, speed, memory and time left, live."""
    output = io.StringIO()
    report = {"event": "training.report", "step": 4, "steps": 8, "loss": 2.0, "steps_per_second": 1.0}
    with LiveView(Console(file=output, force_terminal=True, width=160)) as view:
        view.show(report | {"tokens_per_second": 130.0, "memory_gb": 1.5})
    assert "4/8" in output.getvalue()
    assert bar_facts(view.progress) == "loss 2.000 · 130 tokens/s · 1.50 GB · 4 s left"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (273600, "3 d 4 h"), (-3, "0 s")],
)
def test_durations(seconds: float, text: str) -> None:
    """Time left is read at a glance."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (98_362_432, "98 MB"), (2e12, "2.0 TB")]
)
def test_sizes(count: float, text: str) -> None:
    """Sizes use the units of the disk's maker and of the log."""
    assert size(count) == text


def test_times_are_local() -> None:
    """People compare the log with the clock on the wall; what is no time is shown as it is."""
    moment = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
    assert local_time(moment.isoformat()) == moment.astimezone().strftime("%H:%M:%S")
    assert local_time("\x1b[1mnever") == "never"
