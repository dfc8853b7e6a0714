"""What grows while a daemon runs for months has an end, each thing with a number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from qlora_daemon.mail import Message, RejectedTrimmed
from qlora_daemon.rejections import Entry, beyond, trim
from qlora_daemon.upkeep import Upkeep
from qlora_engine.job.disposal import REMOVED, bytes_of
from qlora_engine.job.folder import Home
from qlora_engine.training.thinning import WHOLE, is_written
from qlora_worker import output
from qlora_worker.connection import Keys
from qlora_worker.messages import Answer
from qlora_worker.output import KEPT_BYTES, MOST_BYTES, keep_short
from qlora_worker.queue import TTL_SECONDS, JobQueue
from qlora_worker.requests import ANSWER_TTL_SECONDS, FIRST, MOST_REQUESTS, Requests, new_key
from support.server import valkey_server
from support.service import wait_until

# rejected/


def rejection(folder: Path, name: str, age: float) -> None:
    for path in (folder / name, folder / f"{name}.txt"):
        path.write_text("x")
        os.utime(path, (time.time() - age, time.time() - age))


def test_the_newest_rejections_stay_each_with_its_text(tmp_path: Path) -> None:
    """Whoever drops a file reads why it was refused in the minutes after that, not in the months."""
    for number in range(10):
        rejection(tmp_path, f"{number}.yaml", age=float(number))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.txt").write_text("why")  # the newest
    assert trim(tmp_path, keep=4) == 14
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith(REMOVED)}
    assert left == {f"{name}{text}" for name in ("folder", "0.yaml", "1.yaml", "2.yaml") for text in ("", ".txt")}
    assert trim(tmp_path, keep=4) == 0


def test_what_somebody_has_half_removed_counts_by_itself() -> None:
    """A text without its file, or a file without its text, must not keep its place for ever."""
    entries = [Entry("a.yaml.txt", 1.0), Entry("b.yaml", 2.0), Entry("c.yaml", 9.0), Entry("c.yaml.txt", 3.0)]
    assert beyond(entries, 1) == ["a.yaml.txt", "b.yaml"]
    assert beyond(entries, 3) == []


def test_the_daemon_trims_and_says_so(tmp_path: Path) -> None:
    """Deleting takes its time where a whole data set was rejected, so a thread does it, and an event tells."""
    home = Home(tmp_path)
    home.make()
    for number in range(5):
        rejection(home.rejected, f"{number}.yaml", age=float(number))
    said: list[Message] = []
    upkeep = Upkeep(home, keep_rejected=2, post=said.append)
    upkeep.begin()
    wait_until("it is trimmed", lambda: said)
    upkeep.stop()
    upkeep.join(5)
    assert said == [RejectedTrimmed(6, 2)]
    assert sorted(path.name for path in home.rejected.iterdir()) == ["0.yaml", "0.yaml.txt", "1.yaml", "1.yaml.txt"]


# Redis


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Redis, Keys, Home]]:
    with valkey_server() as started:
        yield started


def test_answered_requests_leave_nothing_that_does_not_expire(server: tuple[Redis, Keys, Home]) -> None:
    """A client that died before it read its answer, ten times a day for a year."""
    connection, keys, _ = server
    requests = Requests(connection, keys)
    requests.join()
    for _ in range(5):
        request = {"key": new_key(), "kind": "resume", "payload": {}}
        connection.xadd(keys.requests, {"request": json.dumps(request)})
    received = requests.receive(1.0)
    requests.answer((one, Answer.done(None, "")) for one in received)
    assert connection.xlen(keys.requests) == 0
    assert requests.unanswered(FIRST, 10) == ([], None)
    lives = [connection.ttl(keys.answer(one.key)) for one in received]
    assert all(0 < seconds <= ANSWER_TTL_SECONDS for seconds in lives)


def test_requests_that_nobody_answers_are_bounded(
    server: tuple[Redis, Keys, Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that hangs for a night beside a script that asks each second must not fill the memory."""
    connection, keys, _ = server
    monkeypatch.setattr("qlora_worker.requests.MOST_REQUESTS", 300)
    monkeypatch.setattr(connection, "blpop", lambda *_, **__: [b"", Answer.done(None, "").model_dump_json().encode()])
    for _ in range(1000):
        Requests(connection, keys).ask("resume", {})
    assert 300 <= connection.xlen(keys.requests) <= 500  # cut by whole blocks of a hundred
    assert MOST_REQUESTS == 10_000
    connection.delete(keys.requests)


def test_an_attempt_that_was_given_away_expires(server: tuple[Redis, Keys, Home]) -> None:
    """What RQ keeps of it, should nobody ever take it; what is left is one name in a list, and the queue's own."""
    connection, keys, _ = server
    JobQueue(connection, keys).offer("20261122-143501-a", 1)
    (key,) = connection.keys("rq:job:*")
    assert 0 < connection.ttl(key) <= TTL_SECONDS
    JobQueue(connection, keys).withdraw("20261122-143501-a", 1)
    assert connection.keys("rq:job:*") == []
    assert connection.llen(f"rq:queue:{keys.queue}") == 0


def test_the_servers_file_is_written_anew_before_it_grows_large(server: tuple[Redis, Keys, Home]) -> None:
    """Every request and answer is appended to it. Here are 24 MB of them, in which nothing stays."""
    connection, keys, home = server
    text = "x" * 300_000
    for _ in range(5):
        for _ in range(16):
            connection.xadd(keys.requests, {"request": text})
            connection.xtrim(keys.requests, maxlen=0)
        wait_until("it is written anew", lambda: bytes_of(home.state / "appendonlydir") < 1_000_000)


# A run's files


def test_a_long_run_writes_ever_fewer_micro_batches_and_the_same_wherever_it_was_stopped() -> None:
    """411 bytes each: 41 MB for 100,000, 78 MB for a million, 115 MB for ten."""
    assert all(is_written(step - 1, step) for step in range(1, 10_000))
    assert is_written(WHOLE - 1, WHOLE)
    later = [step for step in range(WHOLE + 1, WHOLE + 101) if is_written(step - 1, step)]
    assert later == list(range(WHOLE + 10, WHOLE + 101, 10))
    assert sum(is_written(step - 1, step) for step in range(1, 10 * WHOLE + 1)) == WHOLE + 90_000
    assert is_written(10 * WHOLE - 1, 10 * WHOLE + 120)  # one that counts for many
    assert not is_written(10 * WHOLE + 101, 10 * WHOLE + 199)


def test_what_a_library_prints_for_weeks_is_cut_and_the_end_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the process goes on printing: nothing that it prints afterwards may get lost or leave a hole."""
    monkeypatch.setattr(output, "MOST_BYTES", 50_000)
    monkeypatch.setattr(output, "KEPT_BYTES", 1000)
    path = tmp_path / "output.log"
    chatty = "import sys\nfor line in sys.stdin:\n    sys.stdout.write(line * 1000); sys.stdout.flush()"
    with (
        path.open("ab") as file,
        subprocess.Popen([sys.executable, "-c", chatty], stdin=subprocess.PIPE, stdout=file, text=True) as process,
    ):
        assert process.stdin is not None
        for number in range(40):
            before = path.stat().st_size
            process.stdin.write(f"{number:04}\n")
            process.stdin.flush()
            wait_until("it has printed", lambda before=before: path.stat().st_size == before + 5000)
            keep_short(path)
            assert path.stat().st_size <= 50_000
    assert path.read_bytes().endswith(b"0039\n" * 100)
    assert b"\0" not in path.read_bytes()
    assert MOST_BYTES == 20 * KEPT_BYTES == 20_000_000


def test_output_that_is_short_or_not_there_stays_as_it_is(tmp_path: Path) -> None:
    """Nearly every job's: a few warnings."""
    path = tmp_path / "output.log"
    keep_short(path)
    assert not path.exists()
    path.write_text("a warning\n")
    keep_short(path)
    assert path.read_text() == "a warning\n"
