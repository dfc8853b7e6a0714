"""Following files while other processes write, cut and rotate them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_client.api import Client
from qlora_client.follow import FINAL_EVENT_SECONDS, JobTail, LastLine, Tail, follow_job, read_events
from qlora_client.waiting import exit_code, group_exit_code, wait_until_ended, wait_until_group_ended
from qlora_engine.job.errors import NoSuchJob
from qlora_engine.job.folder import Home, RunFolder
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State

JOB = "20261122-143501-sql"


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def line(event: str, **fields: object) -> str:
    return json.dumps({"event": event, **fields}) + "\n"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / JOB)
    folder.path.mkdir()
    JobRecord.new(JOB, "sql").store(folder.state)
    return folder


def store(run: RunFolder, *states: State) -> None:
    record = JobRecord.load(run.state)
    for state in states:
        record = record.moved(state)
    record.store(run.state)


def move(run: RunFolder, *states: State) -> None:
    """As the daemon does it: the state is stored, then said."""
    for state in states:
        store(run, state)
        append(run.events, line("job.state", to=state))


def test_a_line_counts_when_its_newline_is_there(tmp_path: Path) -> None:
    """A reader that takes half a line loses the event: it parses neither half."""
    path = tmp_path / "log"
    with Tail(path) as tail:
        append(path, "one\ntw")
        assert list(tail.lines()) == [b"one"]
        append(path, "o\n")
        assert list(tail.lines()) == [b"two"]
        assert list(tail.lines()) == []


def test_a_file_may_appear_later(tmp_path: Path) -> None:
    """`qlora logs -f` on a job that has not started must show it when it does."""
    with Tail(tmp_path / "log") as tail:
        assert list(tail.lines()) == []
        append(tmp_path / "log", "one\n")
        assert list(tail.lines()) == [b"one"]


def test_at_end_passes_over_what_was_there(tmp_path: Path) -> None:
    """The demo looks for its own job in the log, not for an older one."""
    append(tmp_path / "log", "old\n")
    with Tail(tmp_path / "log", at_end=True) as tail:
        append(tmp_path / "log", "new\n")
        assert list(tail.lines()) == [b"new"]


@pytest.mark.parametrize(
    ("kept", "lines"), [(0, []), (4, [b"two"]), (5, [b"two"]), (8, [b"one", b"two"]), (99, [b"one", b"two"])]
)
def test_of_a_long_file_only_its_last_lines_are_read(tmp_path: Path, kept: int, lines: list[bytes]) -> None:
    """A service log of megabytes is not read for ten lines; the line that is cut must not be shown as one."""
    append(tmp_path / "log", "one\ntwo\n")
    with Tail(tmp_path / "log", last_bytes=kept) as tail:
        assert list(tail.lines()) == lines
        append(tmp_path / "log", "three\n")
        assert list(tail.lines()) == [b"three"]


def test_at_end_of_a_missing_file_reads_it_from_its_start(tmp_path: Path) -> None:
    """In a new home the log is made after the demo began to look."""
    with Tail(tmp_path / "log", at_end=True) as tail:
        append(tmp_path / "log", "new\n")
        assert list(tail.lines()) == [b"new"]


def test_a_rotated_file_is_read_to_its_end_first(tmp_path: Path) -> None:
    """What was written between the last look and the rotation must not be lost."""
    path = tmp_path / "log"
    append(path, "one\n")
    with Tail(path) as tail:
        assert list(tail.lines()) == [b"one"]
        append(path, "two\n")
        path.rename(tmp_path / "log.1")
        append(path, "three\n")
        assert list(tail.lines()) == [b"two", b"three"]


def test_a_cut_file_is_read_from_its_start(tmp_path: Path) -> None:
    """A log that somebody empties is followed all the same."""
    path = tmp_path / "log"
    append(path, "a long first line\n")
    with Tail(path) as tail:
        list(tail.lines())
        path.write_text("new\n")
        assert list(tail.lines()) == [b"new"]


def test_a_deleted_file_is_followed_when_it_comes_back(tmp_path: Path) -> None:
    """A home that is cleared while its log is followed must not end the follower."""
    path = tmp_path / "log"
    append(path, "one\n")
    with Tail(path) as tail:
        list(tail.lines())
        path.unlink()
        assert list(tail.lines()) == []
        append(path, "two\n")
        assert list(tail.lines()) == [b"two"]


WRITER = """
import sys
from pathlib import Path
path = Path(sys.argv[1])
count = 0
for order in sys.stdin:
    if order == "rotate\\n":
        path.rename(path.with_suffix(f".{count}"))
    with path.open("ab", buffering=0) as file:
        for _ in range(500):
            file.write(b"line %d " % count)
            file.write(b"of many\\n")
            count += 1
    print(count, flush=True)
"""


def test_every_line_of_a_rotating_writer_arrives_once_and_in_order(tmp_path: Path) -> None:
    """Events that come twice, or not at all, would make the live view and the demo wrong."""
    path = tmp_path / "log"
    with (
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as writer,
        Tail(path) as tail,
    ):
        assert writer.stdin is not None
        assert writer.stdout is not None
        found: list[bytes] = []
        for turn in range(20):
            writer.stdin.write("rotate\n" if turn % 3 == 2 else "write\n")
            writer.stdin.flush()
            while len(found) < 500 * (turn + 1):
                found += tail.lines()  # while the writer is at it
            writer.stdout.readline()
        writer.stdin.close()
        assert writer.wait(10) == 0
        found += tail.lines()
    assert found == [b"line %d of many" % number for number in range(500 * 20)]


def test_the_last_line_is_given_once_and_only_when_it_is_whole(tmp_path: Path) -> None:
    """The live view must not read a metrics file of megabytes at every look, nor show a torn number."""
    path = tmp_path / "metrics"
    newest = LastLine(path)
    assert newest.event() is None
    append(path, "".join(line("training.step", step=step) for step in range(5000)))
    assert newest.event() == {"event": "training.step", "step": 4999}
    assert newest.event() is None
    append(path, '{"event": "training.st')
    assert newest.event() == {"event": "training.step", "step": 4999}


def test_events_and_newest_step_are_merged(run: RunFolder) -> None:
    """Live progress needs the events and, between two reports, the newest micro-batch."""
    tail = JobTail(run)
    append(run.events, line("phase.started", phase="train") + "{torn by a crash\n")
    append(run.metrics, line("training.step", step=1) + line("training.step", step=2))
    assert tail.read() == [
        {"event": "phase.started", "phase": "train"},
        {"event": "training.step", "step": 2},
    ]
    assert tail.read() == []
    assert not tail.ended
    tail.close()


def test_following_ends_with_the_final_event(run: RunFolder) -> None:
    """`qlora logs -f` and the script must end by themselves, having shown the last event."""
    append(run.events, line("job.state", **{"from": "accepted", "to": "cancelled", "reason": ""}))
    store(run, State.CANCELLED)
    assert [event["event"] for event in follow_job(run)] == ["job.state"]


def test_following_waits_for_the_final_event(run: RunFolder) -> None:
    """The daemon stores the final state before it writes the event, which must still be shown."""
    store(run, State.CANCELLED)
    tail = JobTail(run)
    assert tail.read() == []
    assert not tail.ended
    append(run.events, line("job.state", **{"from": "accepted", "to": "cancelled", "reason": ""}))
    assert len(tail.read()) == 1
    assert tail.ended


def test_following_ends_when_the_final_event_was_lost(run: RunFolder) -> None:
    """A daemon killed between storing and telling must not leave followers waiting for ever."""
    store(run, State.CANCELLED)
    assert list(follow_job(run)) == []
    assert FINAL_EVENT_SECONDS < 5


TRAINS = (State.QUEUED, State.STARTING, State.RUNNING)


def test_a_job_that_was_retried_is_followed_to_its_last_end(run: RunFolder) -> None:
    """`qlora logs -f` and `submit --wait` would end at once, on the failure of yesterday."""
    move(run, *TRAINS, State.FAILED, *TRAINS)
    tail = JobTail(run)
    assert len(tail.read()) == 7
    assert not tail.ended
    append(run.metrics, line("training.step", step=5))
    assert tail.read() == [{"event": "training.step", "step": 5}]
    move(run, State.DONE)
    assert [event["to"] for event in tail.read()] == ["done"]
    assert tail.ended


def test_the_last_end_of_a_retried_job_is_waited_for(run: RunFolder) -> None:
    """Its first end stands in the events all the time."""
    move(run, *TRAINS, State.FAILED, *TRAINS)
    store(run, State.DONE)
    tail = JobTail(run)
    assert len(tail.read()) == 7
    assert not tail.ended
    append(run.events, line("job.state", to="done"))
    assert len(tail.read()) == 1
    assert tail.ended


def test_a_job_that_is_retried_while_it_is_followed_is_followed_on(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record says that it goes on before its events do, and the wait after one end is not that after another."""
    now = 100.0
    monkeypatch.setattr("qlora_client.follow.time.monotonic", lambda: now)
    store(run, *TRAINS, State.FAILED)
    tail = JobTail(run)
    assert tail.read() == []
    store(run, State.QUEUED)
    append(run.events, line("job.state", to="failed"))
    assert len(tail.read()) == 1
    assert not tail.ended
    append(run.events, line("job.state", to="queued"))
    assert len(tail.read()) == 1
    now += FINAL_EVENT_SECONDS
    store(run, State.CANCELLED)
    assert tail.read() == []
    assert not tail.ended
    tail.close()


def in_home(home: Home, number: int) -> RunFolder:
    """One job of a sweep, queued."""
    job = f"20261122-143501-poems-rank-{number}"
    run = home.run(job)
    run.path.mkdir(parents=True)
    record = JobRecord.new(job, job).noting(group="20261122-143501-poems", settings={"rank": number})
    record.store(run.state)
    move(run, State.QUEUED)
    return run


def test_who_waits_for_a_job_waits_again_when_it_is_retried(tmp_path: Path) -> None:
    """How it ended is asked for after its end was seen; by then it may train again."""
    home = Home(tmp_path)
    run = in_home(home, 8)
    move(run, State.STARTING, State.RUNNING, State.FAILED)
    said: list[str] = []

    class Retried(Client):
        """Between the end that is seen and the look at the record, somebody retries the job."""

        def job(self, id_part: str) -> JobRecord:
            if len(said) == 4:
                move(run, *TRAINS)
            return super().job(id_part)

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 7:
            move(run, State.DONE)

    record = wait_until_ended(Retried(tmp_path), run.id, say)
    assert (record.state, exit_code(record)) == (State.DONE, 0)
    assert len(said) == 8  # each change once


def test_who_waits_for_a_sweep_waits_for_a_job_that_is_retried_meanwhile(tmp_path: Path) -> None:
    """While the second one trains, the first is tried again."""
    home = Home(tmp_path)
    first, second = in_home(home, 4), in_home(home, 8)
    move(first, State.STARTING, State.RUNNING, State.FAILED)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 5:  # the second one's first
            move(first, *TRAINS)
            move(second, State.STARTING, State.RUNNING, State.DONE)
        if len(said) == 11:
            move(first, State.DONE)

    client = Client(tmp_path)
    ended = wait_until_group_ended(client, client.group("poems"), say)
    assert group_exit_code(ended) == 0
    assert [text.partition(":")[0] for text in said] == ["rank=4"] * 4 + ["rank=8"] * 4 + ["rank=4"] * 4


def test_a_run_that_vanishes_ends_the_following_with_an_error(run: RunFolder) -> None:
    """A follower of a deleted run would otherwise wait for ever."""
    tail = JobTail(run)
    tail.read()
    run.state.unlink()
    run.path.rmdir()
    with pytest.raises(NoSuchJob, match=JOB):
        tail.read()
    tail.close()


def test_reading_what_is_there_does_not_wait(run: RunFolder) -> None:
    """`qlora logs ID` prints and ends, also for a job without events."""
    assert list(read_events(run.events)) == []
    append(run.events, line("phase.started", phase="load"))
    assert len(list(read_events(run.events))) == 1
