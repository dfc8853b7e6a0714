"""Work beside training: its result and its failure reach the one who waits, and only one is under way."""

from __future__ import annotations

import threading

import pytest

from qlora_engine.training.aside import Aside


def test_a_result_is_taken_where_it_is_waited_for() -> None:
    """Events have one writer: the thread that trains."""
    taken: list[tuple[int, threading.Thread]] = []
    aside: Aside[int] = Aside(lambda result: taken.append((result, threading.current_thread())))
    go_on = threading.Event()
    aside.begin(lambda: 7 if go_on.wait(60) else 0)
    aside.poll()
    assert not taken
    go_on.set()
    aside.wait()
    aside.wait()
    assert taken == [(7, threading.current_thread())]


def test_polling_takes_what_is_there() -> None:
    """Long before anything waits for it."""
    taken: list[int] = []
    aside: Aside[int] = Aside(taken.append)
    ended = threading.Event()
    aside.begin(lambda: ended.set() or 1)
    assert ended.wait(60)
    while not taken:  # the thread has still to hand the result over
        aside.poll()
    assert taken == [1]


def test_the_next_waits_for_the_one_before() -> None:
    """Two checkpoints at once would take two copies of what they hold, and end in any order."""
    taken: list[int] = []
    aside: Aside[int] = Aside(taken.append)
    running = threading.Lock()

    def work(number: int) -> int:
        assert running.acquire(blocking=False)
        running.release()
        return number

    for number in range(5):
        aside.begin(lambda number=number: work(number))
    aside.wait()
    assert taken == [0, 1, 2, 3, 4]


def test_a_failure_is_raised_to_the_one_who_waits() -> None:
    """A full disk must not go by unseen, and must not come twice."""
    aside: Aside[int] = Aside(lambda _: None)

    def fail() -> int:
        raise OSError(28, "No space left on device")

    aside.begin(fail)
    with pytest.raises(OSError, match="No space"):
        aside.begin(lambda: 1)
    aside.wait()
