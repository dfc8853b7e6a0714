"""What is prepared ahead is what a plain loop prepares, and the thread that does it ends with the loop."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from qlora_engine.training.prefetch import ahead


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    """Each test ends without the thread, however its loop ended."""
    yield
    assert threads() == []


@pytest.mark.parametrize("depth", [1, 2, 5, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_the_order_is_that_of_a_plain_loop(count: int, depth: int) -> None:
    """Batches in another order give other losses."""
    with ahead(range(count), lambda item: item * item, depth=depth) as prepared:
        assert list(prepared) == [(item, item * item) for item in range(count)]


def test_the_work_is_done_in_one_other_thread() -> None:
    """Two would share what is not made for it; none would make the GPU wait."""
    with ahead(range(20), lambda _: threading.get_ident()) as prepared:
        found = {ident for _, ident in prepared}
    assert len(found) == 1
    assert threading.get_ident() not in found


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_is_taken_than_asked_for_and_some_ahead(depth: int) -> None:
    """A loop over a million windows may not hold a million batches."""
    taken: list[int] = []
    full = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    def prepare(item: int) -> int:
        full.release()
        return item

    with ahead(items(), prepare, depth=depth) as prepared:
        for asked in range(10):
            assert full.acquire(timeout=10)  # it never falls back behind what was asked for
            next(prepared)
            assert len(taken) <= asked + 1 + depth
    assert len(taken) <= 10 + depth


def test_an_error_comes_in_its_place() -> None:
    """The windows before a bad one are trained first, as without the thread."""
    with ahead([4, 2, 0, 1], lambda item: 8 // item) as prepared:
        assert [next(prepared), next(prepared)] == [(4, 2), (2, 4)]
        with pytest.raises(ZeroDivisionError):
            next(prepared)
        assert list(prepared) == []


def test_an_error_of_the_items_comes_in_its_place() -> None:
    """A plan may refuse in the middle as well as a batch."""

    def items() -> Iterator[int]:
        yield 1
        raise LookupError("no more")

    with ahead(items(), str) as prepared:
        assert next(prepared) == (1, "1")
        with pytest.raises(LookupError, match="no more"):
            next(prepared)


def test_a_loop_that_ends_early_ends_the_thread() -> None:
    """After a stop or a way back to a checkpoint nothing may work on what is no longer wanted."""
    with ahead(iter(int, 1), lambda item: item) as prepared:  # endless
        assert next(prepared) == (0, 0)
    assert threads() == []
    assert list(prepared) == []


def test_an_error_of_the_loop_ends_the_thread() -> None:
    """What training raises is raised, and not a second thing on top."""

    def train() -> None:
        with ahead(iter(int, 1), str) as prepared:
            next(prepared)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        train()
    assert threads() == []


def test_an_error_that_nobody_asked_for_is_not_raised() -> None:
    """A bad batch behind the place of a stop is not this process's to report."""
    failed = threading.Event()

    def prepare(item: int) -> int:
        if item == 1:
            failed.set()
            raise ValueError(item)
        return item

    with ahead(range(3), prepare) as prepared:
        assert next(prepared) == (0, 0)
        assert failed.wait(10)
