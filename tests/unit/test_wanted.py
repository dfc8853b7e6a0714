"""Filters of `qlora ls` and `qlora logs`: what is asked for is shown, and nothing else."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qlora_client.cli import main
from qlora_client.listing import Summary
from qlora_client.wanted import BadFilter, Wanted, WantedEvents, moment, wanted_events
from qlora_engine.job.folder import Home
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State

NOW = datetime(2026, 11, 22, 14, 35, tzinfo=UTC)


def job(name: str, state: State = State.DONE, hours_ago: float = 0.0) -> JobRecord:
    made = NOW - timedelta(hours=hours_ago)
    job_id = f"{made:%Y%m%d-%H%M%S}-{name.lower()}"
    return JobRecord(id=job_id, name=name, state=state, created=made, changed=made)


JOBS = [
    job("SQL-long", State.RUNNING),
    job("sql", State.QUEUED, 1),
    job("haiku", State.FAILED, 30),
    job("sql-old", State.DONE, 100),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("QLORAD_HOME", str(tmp_path))
    for record in JOBS:
        run = Home(tmp_path).run(record.id)
        run.path.mkdir(parents=True)
        record.store(run.state)
    return Home(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], ["SQL-long", "sql", "haiku", "sql-old"]),
        (["--state", "failed"], ["haiku"]),
        (["--state", "failed", "--state", "running"], ["SQL-long", "haiku"]),
        (["--name", "Sql"], ["SQL-long", "sql", "sql-old"]),
        (["--name", "sql-*"], ["SQL-long", "sql-old"]),
        (["--since", "2026-11-22T13:00+00:00"], ["SQL-long", "sql"]),
        (["--name", "sql", "--since", "2026-11-22T14:00+00:00", "--state", "queued"], []),
    ],
)
def test_only_the_jobs_that_are_asked_for_are_listed(
    home: Home, capsys: pytest.CaptureFixture[str], arguments: list[str], names: list[str]
) -> None:
    """Among thousands, nobody finds a job by reading."""
    assert home.runs.exists()
    assert main(["ls", "--json", *arguments]) == 0
    output = capsys.readouterr()
    assert [found["name"] for found in json.loads(output.out)] == names
    assert ("None of 4 jobs fits" in output.err) is (not names)


def test_old_jobs_are_not_even_read(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """An id begins with its time, so that `--since 1h` is as fast with ten thousand jobs as with ten."""
    old = home.run(JOBS[-1].id)
    old.state.write_text("{torn")
    assert main(["ls", "--since", "2026-11-22T14:00+00:00"]) == 0
    assert "no readable record" not in capsys.readouterr().err
    assert Wanted(since=NOW).is_older(old.id)
    assert not Wanted(since=NOW).is_older(JOBS[1].id)  # within a day the clock may have been set
    assert not Wanted().is_older(old.id)


def test_a_job_of_a_newer_version_can_be_asked_for_by_its_id() -> None:
    """Its name is not known, its id is."""
    newer = Summary("20261122-143500-sql", "newer", "", 0, 0, 0, NOW, urgent=False, record={})
    assert Wanted(name="sql").takes(newer)
    assert not Wanted(name="haiku").takes(newer)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, None),
        ("2h", NOW - timedelta(hours=2)),
        ("1d12h", NOW - timedelta(hours=36)),
        ("2026-11-20T10:00+01:00", datetime(2026, 11, 20, 9, tzinfo=UTC)),
        ("2026-11-20", datetime(2026, 11, 20).astimezone(UTC)),
    ],
)
def test_a_time_is_how_long_ago_or_when(text: str | None, found: datetime | None) -> None:
    """Both are what people think in."""
    assert moment(text, NOW) == found


@pytest.mark.parametrize(
    ("names", "takes"),
    [
        ((), {"training.report", "job.state", "child.output"}),
        (("job.state",), {"job.state"}),
        (("training.*", "job.*"), {"training.report", "job.state"}),
    ],
)
def test_events_are_chosen_by_name_or_pattern(names: tuple[str, ...], takes: set[str]) -> None:
    """`training.*` is all of training."""
    wanted = wanted_events(names)
    assert {name for name in ("training.report", "job.state", "child.output") if wanted.takes({"event": name})} == takes


def test_an_event_without_a_time_is_shown() -> None:
    """A line that another version wrote must not be lost by a filter."""
    wanted = WantedEvents(since=NOW)
    assert wanted.takes({"event": "job.state"})
    assert wanted.takes({"event": "job.state", "ts": "2026-11-22T14:35:00"})
    assert not wanted.takes({"event": "job.state", "ts": "2026-11-22T14:34:59+00:00"})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["logs", "--event", "training.reprot"], "Did you mean training.report?"),
        (["logs", "--event", "nothing.*"], "docs/events.md"),
        (["logs", "--since", "yesterday"], "90m, 2h or 3d"),
        (["ls", "--since", "tomorrow"], "90m, 2h or 3d"),
        (["ls", "--state", "sleeping"], "'queued'"),
        (["ls", "--watch", "--json"], "does not go with --json"),
    ],
)
def test_a_filter_that_names_nothing_is_refused(
    home: Home, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    """An empty list would say that there is nothing, where only a letter was wrong."""
    assert home.path.exists()
    assert main(arguments) == 64
    assert says in capsys.readouterr().err


def log(home: Home, name: str, *events: tuple[str, str]) -> None:
    home.logs.mkdir(exist_ok=True)
    lines = ({"ts": f"2026-11-22T{time}:00+00:00", "level": "debug", "event": event} for time, event in events)
    (home.logs / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_service_log_is_searched_in_its_older_files_too(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """The log is rotated by size; whoever asks for the last two hours knows nothing of that."""
    log(home, "qlorad.jsonl.2", ("10:00", "child.output"))
    log(home, "qlorad.jsonl.1", ("11:00", "child.output"), ("12:00", "library.log"))
    log(home, "qlorad.jsonl", ("13:00", "child.output"))
    assert main(["logs", "--since", "2026-11-22T10:30+00:00", "--event", "child.*", "--json"]) == 0
    found = [json.loads(line)["ts"][11:13] for line in capsys.readouterr().out.splitlines()]
    assert found == ["11", "13"]


def test_what_is_named_is_shown_although_it_is_a_detail(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a name a person sees no output of children; who names it wants it."""
    log(home, "qlorad.jsonl", ("13:00", "child.output"))
    assert main(["logs"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["logs", "--event", "child.output"]) == 0
    assert capsys.readouterr().out != ""


def test_a_bad_filter_is_an_error_of_the_command_line() -> None:
    """Scripts tell it from a failure."""
    with pytest.raises(BadFilter):
        moment("soon", NOW)
