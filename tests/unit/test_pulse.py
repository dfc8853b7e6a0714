"""What a training process says of itself, and what its worker reads."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from qlora_engine.job.pulse import WIDTH, Pulse, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pulse.json"


def test_the_phase_and_the_steps_can_be_read(path: Path) -> None:
    """Without them nobody could say where a run stands still."""
    pulse = Pulse(path, 3)
    pulse.enter("train")
    assert pulse.phase == "train"
    pulse.beat(7)
    found = read(path)
    assert found is not None
    assert (found.attempt, found.phase, found.step, found.beats) == (3, "train", 7, 2)


def test_the_longest_gap_of_each_phase_is_kept_over_attempts(path: Path) -> None:
    """What the run taught about itself must not be forgotten when it goes on: its allowed times follow from it."""
    first = Pulse(path, 1)
    first.enter("load")
    time.sleep(0.12)
    first.enter("train")
    second = Pulse(path, 2)
    before = read(path)
    assert before is not None
    assert (before.attempt, before.phase) == (1, "train")  # until it has something to say itself
    second.enter("train")
    found = read(path)
    assert found is not None
    assert found.gaps["load"] >= 0.12
    assert found.gaps["start"] < 0.1


def test_a_beat_costs_nothing_that_a_step_would_feel(path: Path) -> None:
    """A tiny model does a micro-batch a millisecond."""
    pulse = Pulse(path, 1)
    pulse.enter("train")
    began = time.process_time()
    for step in range(20_000):
        pulse.beat(step)
    assert (time.process_time() - began) / 20_000 < 20e-6


def test_the_engine_without_a_worker_says_nothing(tmp_path: Path) -> None:
    """In the foreground nobody watches, and the run's folder holds what its job asked for."""
    pulse = Pulse(None, 0)
    pulse.enter("validate")
    pulse.beat(1)
    assert pulse.phase == "validate"
    assert not list(tmp_path.iterdir())


def test_a_phase_that_nobody_knows_is_refused() -> None:
    """The watchdog would not know how long it may take."""
    with pytest.raises(ValueError, match="lunch"):
        Pulse(None, 0).enter("lunch")


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"null", b'{"attempt": 1}', b"\xff" * WIDTH])
def test_anything_else_reads_as_no_news(path: Path, content: bytes | None) -> None:
    """A damaged file may not end the worker that watches."""
    if content is not None:
        path.write_bytes(content)
    assert read(path) is None
    Pulse(path, 1).enter("load")
    found = read(path)
    assert found is not None
    assert (found.attempt, found.phase, found.step) == (1, "load", 0)


def test_a_line_made_of_two_is_no_news(path: Path) -> None:
    """A read that meets a write half-way gets such a line, and one cut at a digit is good JSON."""
    pulse = Pulse(path, 1)
    pulse.enter("train")
    old = path.read_bytes()
    pulse.beat(640)
    new = path.read_bytes()
    for cut in range(1, WIDTH):
        mixed = new[:cut] + old[cut:]
        path.write_bytes(mixed)
        assert read(path) is None or mixed in (old, new)


def test_a_reader_sees_whole_lines_while_another_process_writes(path: Path) -> None:
    """A reader that took a half-written file for a new pulse would see life where there is none."""
    code = (
        "import sys; from pathlib import Path; from qlora_engine.job.pulse import Pulse\n"
        "pulse = Pulse(Path(sys.argv[1]), 1); pulse.enter('train')\n"
        "for step in range(20_000): pulse.enter(('train', 'validate')[step % 2]); pulse.beat(step)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as writer:
        beats = [0]
        while writer.poll() is None:
            found = read(path)
            if found is not None:
                beats.append(found.beats)
    assert writer.returncode == 0
    assert beats == sorted(beats)
    assert beats[-1] > 10_000
    assert path.stat().st_size == WIDTH
