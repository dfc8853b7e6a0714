"""Being asked to stop: heard at once, also deep in a computation, and obeyed at the right moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qlora_engine.training.stop import StopRequest

TIME_LIMIT = 20

# `zlib.compress` of 300 MB stands for `mx.eval`: it lets other threads run, and Python's handlers wait for its end.
PROGRAM = """
import os, sys, time, zlib
from contextlib import nullcontext
from qlora_engine.training.stop import StopRequest

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def announce(cause):
    if "slow" in sys.argv:
        time.sleep(0.3)
    say("asked", cause, time.monotonic())
    if "deaf" in sys.argv:
        raise OSError(28, "No space left on device")

parent = int(sys.argv[1]) if sys.argv[1] != "-" else None
def farewell():
    say("farewell")
    if "deaf" in sys.argv:
        raise OSError(5, "Input/output error")

stop = StopRequest(parent, announce=announce, farewell=farewell)
stop.watch()
say("ready")
with stop.nothing_to_lose() if "nothing" in sys.argv else nullcontext():
    if "native" in sys.argv:
        zlib.compress(bytes(300_000_000), 9)
        say("computed", stop.asked, time.monotonic())
    while not stop.asked:
        time.sleep(0.01)
say("checkpoint")
if "save" in sys.argv:
    with stop.nothing_to_lose():
        say("never")
while True:
    time.sleep(1)
"""


@contextmanager
def program(*arguments: str, parent: int | None = None) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "-" if parent is None else str(parent), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=() if parent is None else (parent,),
    )
    guard = threading.Timer(TIME_LIMIT, process.kill)  # a line that never comes is a failure, not a hang
    guard.start()
    try:
        assert line(process) == "ready"
        yield process
    finally:
        guard.cancel()
        process.kill()
        process.communicate(timeout=10)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_ends_at_once(number: signal.Signals) -> None:
    """First a checkpoint; then the person means it."""
    with program() as process:
        process.send_signal(number)
        assert line(process).startswith(f"asked {number.name}")
        assert line(process) == "checkpoint"
        assert process.poll() is None
        process.send_signal(number)
        assert line(process) == "farewell"
        assert process.wait(timeout=5) == 75


def test_a_signal_is_heard_during_a_long_computation() -> None:
    """Python runs handlers only when the computation returns, which can be longer than launchd waits."""
    with program("native") as process:
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        word, cause, heard = line(process).split()
        assert (word, cause) == ("asked", "SIGTERM")
        word, asked, computed = line(process).split()
        assert (word, asked) == ("computed", "True")
        assert float(heard) - sent < 0.5
        assert float(heard) < float(computed)


def test_a_second_signal_ends_a_long_computation() -> None:
    """The last checkpoint stands; nobody waits for the rest."""
    with program("native") as process:
        process.send_signal(signal.SIGTERM)
        assert line(process).startswith("asked")
        process.send_signal(signal.SIGTERM)
        assert line(process) == "farewell"  # and not "computed"
        assert process.wait(timeout=5) == 75


def test_with_nothing_to_lose_the_first_signal_ends_at_once() -> None:
    """While the model loads there is nothing to save."""
    with program("nothing", "native") as process:
        process.send_signal(signal.SIGTERM)
        assert line(process).startswith("asked")
        assert line(process) == "farewell"
        assert process.wait(timeout=5) == 75


def test_a_request_is_told_before_training_heeds_it() -> None:
    """Whoever reads the events learns why training stopped, and first; it may end within a millisecond."""
    with program("slow", "save") as process:
        process.send_signal(signal.SIGTERM)
        assert line(process).startswith("asked")
        assert [line(process), line(process)] == ["checkpoint", "farewell"]


def test_a_request_that_came_before_ends_a_phase_with_nothing_to_lose() -> None:
    """It may come between two phases."""
    with program("save") as process:
        process.send_signal(signal.SIGTERM)
        assert line(process).startswith("asked")
        assert [line(process), line(process)] == ["checkpoint", "farewell"]
        assert process.wait(timeout=5) == 75


def test_the_end_of_the_parent_is_a_request() -> None:
    """A worker that was killed sends no signal; its training may not go on beside the next."""
    ours, theirs = os.pipe()
    with program(parent=ours) as process:
        os.close(ours)
        os.close(theirs)
        assert line(process).startswith("asked the process that started this one has ended")
        assert line(process) == "checkpoint"
        process.send_signal(signal.SIGTERM)  # counts as the second
        assert line(process) == "farewell"
        assert process.wait(timeout=5) == 75


def test_a_request_is_obeyed_when_it_cannot_be_announced() -> None:
    """The disk may be full, or the terminal gone: the second signal must be heard all the same."""
    with program("deaf") as process:
        process.send_signal(signal.SIGTERM)
        assert line(process).startswith("asked")
        assert line(process) == "checkpoint"
        process.send_signal(signal.SIGTERM)
        assert line(process) == "farewell"
        assert process.wait(timeout=5) == 75
    with program("deaf", "nothing") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 75


def test_other_signals_are_no_request() -> None:
    """The descriptor hears every signal that has a handler; only two of them mean stop."""
    with program("native") as process:
        process.send_signal(signal.SIGWINCH)
        process.send_signal(signal.SIGCHLD)
        assert line(process).startswith("computed False")


def test_asking_from_within_is_asking_once() -> None:
    """Each cause is announced once."""
    causes: list[str] = []
    stop = StopRequest(announce=causes.append)
    assert not stop.asked
    stop.request("a test")
    assert stop.asked
    assert causes == ["a test"]
