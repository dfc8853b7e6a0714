"""One piece of work in a thread beside training, whose failure is raised in the thread that waits for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Aside(Generic[T]):
    """Work that touches neither MLX nor anything that training changes.

    Args:
        done: called with each result, in the thread that begins, polls or waits.
    """

    def __init__(self, done: Callable[[T], None]) -> None:
        self._done = done
        self._pool = ThreadPoolExecutor(1, "aside")
        self._pending: Future[T] | None = None

    def begin(self, work: Callable[[], T]) -> None:
        """Wait for what was begun before, then begin with this."""
        self.wait()
        self._pending = self._pool.submit(work)

    def poll(self) -> None:
        """Take the result if it is there.

        Raises:
            Exception: what the work raised.
        """
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the result if something was begun, and take it.

        Raises:
            Exception: what the work raised.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            self._done(pending.result())
