"""`qlora top`: everything at a glance, in the room that the terminal has."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from qlora_client.cli import main
from qlora_client.curve import Point
from qlora_client.listing import Summary
from qlora_client.progress import Progress
from qlora_client.top.look import Looking, View
from qlora_client.top.page import Room, page
from qlora_client.top.run import as_json
from qlora_client.top.service import Service
from qlora_engine.job.folder import Home
from qlora_engine.job.lock import held
from qlora_engine.job.pause import Pause
from qlora_engine.job.record import JobRecord
from qlora_engine.job.service_status import ServiceStatus
from qlora_engine.job.states import State

NOW = datetime(2026, 11, 22, 14, 35, 1, tzinfo=UTC)
HOSTILE = "\x1b[2J\x1b]0;title\x07\u202e"


def summary(number: int, state: State, **more: Any) -> Summary:
    record = JobRecord.new(f"20261122-1435{number:02}-sql-assistant", "sql")
    return Summary.of(record.noting(state=state, **more).model_dump(mode="json"), now=NOW)


PROGRESS = Progress(
    phase="train", step=1240, steps=4000, loss=0.589, tokens_per_second=412.0, memory_gb=12.4, peak_gb=13.1,
    limit_gb=27.0, pace=3.0, first_validation=(0, 1.457), validation=(1200, 0.7),
)  # fmt: skip
VIEW = View(
    now=NOW,
    service=Service(NOW - timedelta(hours=3)),
    counts={"running": 1, "queued": 30, "done": 1200},
    active=summary(0, State.RUNNING),
    progress=PROGRESS,
    losses=[Point(step, 2 - step / 1240) for step in range(1, 1241)],
    validations=[Point(0, 1.457), Point(1200, 0.7)],
    waiting=[summary(number, State.QUEUED, priority=30 - number) for number in range(1, 31)],
    waits=30,
    events=[
        {"event": "checkpoint.saved", "ts": NOW.isoformat(), "job": "20261122-143500-sql-assistant", "step": step}
        for step in range(50)
    ],
)


def text_of(lines: Sequence[Text]) -> str:
    return "\n".join(line.plain for line in lines)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 36), (200, 60), (60, 16), (40, 10), (20, 5)])
def test_the_page_has_as_many_lines_as_the_terminal(width: int, height: int) -> None:
    """One too many and the screen scrolls away under its own first line."""
    lines = page(VIEW, Room(width, height))
    assert len(lines) == height
    assert lines[-1].plain == "q quits"


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 36)])
def test_it_says_what_runs_how_far_it_is_and_what_comes_next(width: int, height: int) -> None:
    """Step, losses, speed, memory, time left, curve, queue and events: at 80 columns, too."""
    text = text_of(page(VIEW, Room(width, height)))
    for part in (
        "runs since 3 h", "1 running · 30 queued · 1,200 done", "20261122-143500-sql-assistant  running  train",
        "31%  step 1,240 of 4,000 · 2 h 18 min left", "loss 0.589 · validation 0.700 at step 1,200, 1.457 at first",
        "412 tokens/s", "46%  12.40 of 27.0 GB of memory, at most 13.10", "4,000", "┤", "Queue  the first",
        "1  20261122-143501-sql-assistant  queued    +29  next", "sql-assistant  step 49: checkpoint saved",
    ):  # fmt: skip
        assert part in text


def test_a_job_that_went_back_is_where_its_events_say() -> None:
    """The record that is stored may be of before that, and further."""
    view = replace(VIEW, active=summary(0, State.RUNNING, step=2000, steps=4000))
    assert "31%  step 1,240 of 4,000" in text_of(page(view, Room(80, 24)))
    assert as_json(view)["active"]["step"] == 1240


def test_the_curve_grows_with_the_terminal() -> None:
    """More room is for what a person looks at longest."""
    rows = [sum("│" in line.plain or "┤" in line.plain for line in page(VIEW, Room(80, height))) for height in (24, 50)]
    assert rows[1] > rows[0] >= 4


def test_a_terminal_without_unicode_gets_ascii() -> None:
    """`LANG=C` over an old ssh: question marks would be all of the curve."""
    view = replace(VIEW, events=[])
    assert "".join(line.plain for line in page(view, Room(80, 24, dots=False))).replace("·", "").isascii()


def test_a_snapshot_ends_where_its_text_ends() -> None:
    """A pipe has no last line to which a screen must be filled."""
    lines = page(replace(VIEW, waiting=VIEW.waiting[:1], waits=1), Room(120))
    assert "q quits" not in text_of(lines)
    assert lines[-1].plain.strip()


def test_a_job_that_fuses_is_before_no_micro_batch() -> None:
    """It will never have one."""
    fuses = replace(VIEW, active=summary(1, State.RUNNING, kind="fuse"), progress=Progress(phase="fuse"), losses=[])
    assert "micro-batch" not in text_of(page(fuses, Room(80, 24)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"active": None, "counts": {}}, "There are no jobs yet. Make one: qlora init my-job"),
        ({"active": None}, "Nothing trains."),
        ({"active": None, "ended": summary(9, State.FAILED, reason="3 crashes")}, "sql-assistant  failed  3 crashes"),
        ({"waiting": [], "waits": 0}, "Queue: empty"),
        ({"progress": Progress(), "losses": [], "validations": []}, "before its first micro-batch"),
        ({"progress": replace(PROGRESS, limit_gb=None)}, "12.40 GB of memory, at most 13.10"),
        ({"service": Service(None, ("The daemon does not run. Start it: qlorad",))}, "Start it: qlorad"),
        ({"waiting": [summary(1, State.HELD, reason="asked for")], "waits": 1}, "–  20261122-143501-sql-assistant"),
        ({"waiting": [summary(1, State.QUEUED, urgent=True)], "waits": 1}, "queued    urgent  next"),
    ],
)
def test_it_says_plainly_what_is_missing(changes: dict[str, Any], says: str) -> None:
    """An empty screen would leave a person guessing."""
    assert says in text_of(page(replace(VIEW, **changes), Room(80, 24)))


def test_nothing_that_a_terminal_obeys_gets_through() -> None:
    """Names, reasons and messages come from files and other processes."""
    bad = replace(summary(1, State.RUNNING), id=HOSTILE + "job", reason=HOSTILE)
    event = {"event": HOSTILE, "ts": HOSTILE, "job": HOSTILE}
    progress = replace(PROGRESS, phase=HOSTILE)
    view = replace(VIEW, active=bad, ended=bad, waiting=[replace(bad, state="queued")], events=[event] * 9)
    for shown in (replace(view, progress=progress), replace(view, active=None)):
        text = text_of(page(shown, Room(80, 24)))
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_colours_vanish_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR (https://no-color.org), and whatever is no terminal."""
    monkeypatch.setenv("NO_COLOR", "1")
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80)
    for line in page(VIEW, Room(80, 24)):
        console.print(line)
    assert "\x1b[3" not in output.getvalue()


# Looking at a home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.make()
    return home


def store(home: Home, number: int, state: State, **more: Any) -> str:
    record = JobRecord.new(f"20261122-1435{number:02}-a", "a").noting(state=state, **more)
    home.run(record.id).path.mkdir(exist_ok=True)
    record.store(home.run(record.id).state)
    return record.id


def append(path: Path, **event: Any) -> None:
    with path.open("a") as file:
        file.write(json.dumps({"ts": NOW.isoformat(), "level": "info", **event}) + "\n")


def test_a_look_follows_the_job_that_trains(home: Home) -> None:
    """Progress and curve belong to the job that runs now, and to no other."""
    first = store(home, 1, State.RUNNING, steps=10)
    second = store(home, 2, State.QUEUED)
    append(home.run(first).metrics, event="training.step", attempt=1, step=3, steps=10, loss=2.0)
    looking = Looking(home)
    view = looking.look()
    assert view.active is not None
    assert (view.active.id, view.progress.step, len(view.losses)) == (first, 3, 1)
    append(home.run(first).metrics, event="training.step", attempt=1, step=4, steps=10, loss=1.9)
    assert len(looking.look().losses) == 2
    store(home, 1, State.DONE, ended=NOW)
    store(home, 2, State.STARTING)
    view = looking.look()
    assert view.active is not None
    assert (view.active.id, view.progress.step, len(view.losses)) == (second, 0, 0)
    assert view.ended is not None
    assert view.ended.id == first
    looking.close()


def test_the_queue_is_in_the_order_of_turns(home: Home) -> None:
    """Who is next must be the one that the daemon will take."""
    for number, (state, more) in enumerate(
        [
            (State.HELD, {}),
            (State.QUEUED, {}),
            (State.BLOCKED, {"reason": "waits for another"}),
            (State.QUEUED, {"priority": 5}),
            (State.QUEUED, {"urgent": True, "not_before": NOW + timedelta(hours=1)}),
        ]
    ):
        store(home, number, state, **more)
    looking = Looking(home)
    waiting = looking.look(NOW).waiting
    looking.close()
    assert [job.id[13:15] for job in waiting] == ["04", "03", "01", "02", "00"]
    assert waiting[0].reason.startswith("starts at")
    assert waiting[3].reason == "waits for another"


def test_a_job_of_a_newer_version_is_counted_and_not_queued(home: Home) -> None:
    """The daemon leaves it alone; nothing is known of its turn."""
    job_id = store(home, 1, State.QUEUED)
    home.run(job_id).state.write_text('{"format": 99}')
    looking = Looking(home)
    view = looking.look()
    looking.close()
    assert (dict(view.counts), view.waits) == ({"newer": 1}, 0)
    assert "1 newer" in text_of(page(view, Room(80, 24)))


def test_the_last_events_are_those_of_note(home: Home) -> None:
    """Reports and details of children would drive everything else off the screen."""
    append(home.service_log, event="job.state", job="a")
    append(home.service_log, event="training.report", job="a")
    append(home.service_log, event="child.output", level="debug")
    looking = Looking(home)
    assert [event["event"] for event in looking.look().events] == ["job.state"]
    home.service_log.rename(home.logs / "qlorad.jsonl.1")
    append(home.service_log, event="queue.paused")
    assert [event["event"] for event in looking.look().events] == ["job.state", "queue.paused"]
    looking.close()


def test_the_service_says_what_keeps_jobs_from_training(home: Home) -> None:
    """A queue that stands still has a reason, and it is at the top."""
    looking = Looking(home)
    assert looking.look().service.troubles == ("The daemon does not run. Start it: qlorad",)
    with held(home.daemon_lock, {"pid": 41}):
        assert looking.look().service.troubles == ("The daemon starts.",)
        hindrance = {"kind": "battery", "whom": "all", "what": "the machine runs on battery"}
        said = ServiceStatus.none().model_copy(update={"pid": 41, "started": NOW})
        home.status.write_text(json.dumps(said.model_dump(mode="json") | {"hindrances": [hindrance]}))
        Pause(paused=True).store(home.pause)
        troubles = looking.look().service.troubles
    looking.close()
    assert troubles == (
        "The queue does not answer.",
        "The queue is paused until `qlora resume`.",
        "Jobs wait: the machine runs on battery.",
    )


def test_without_a_terminal_one_page_is_printed_and_it_says_so(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`qlora top > file` must neither hang nor fill the file with control characters."""
    monkeypatch.setenv("QLORAD_HOME", str(home.path))
    store(home, 1, State.QUEUED)
    assert main(["top"]) == 0
    output = capsys.readouterr()
    assert "20261122-143501-a" in output.out
    assert "\x1b" not in output.out
    assert "The output is no terminal" in output.err
    assert main(["top", "--once"]) == 0
    assert capsys.readouterr().err == ""


def test_programs_get_json(home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the screen shows can be read by a script."""
    monkeypatch.setenv("QLORAD_HOME", str(home.path))
    job_id = store(home, 1, State.RUNNING, steps=10)
    append(home.run(job_id).metrics, event="training.step", attempt=1, step=3, steps=10, loss=2.0)
    assert main(["top", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["active"]["record"]["id"] == job_id
    assert (found["active"]["step"], found["active"]["loss"], found["waits"]) == (3, 2.0, 0)
