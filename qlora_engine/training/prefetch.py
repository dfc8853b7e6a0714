"""The next batches prepared ahead in a thread of their own, in their order, while the GPU works on this one."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@contextlib.contextmanager
def ahead(items: Iterable[T], prepare: Callable[[T], R], *, depth: int = 2) -> Iterator[Iterator[tuple[T, R]]]:
    """Each item with what `prepare` makes of it, made in a thread that is at most `depth` items ahead.

        with ahead(windows, lay_out) as prepared:
            for window, batches in prepared:
                ...

    Items are taken and prepared one after the other in that one thread, so the result is that of a plain loop. At the
    end of the `with` block the thread has ended: what it was just preparing is waited for, the rest is never begun.

    Args:
        items: taken by the thread; at most `depth` more than were asked for.
        prepare: plain Python and NumPy. MLX's streams and random state belong to the thread that trains.
        depth: at least 1.

    Raises:
        Exception: from the iterator, what `items` or `prepare` raised, in the place of that item.
    """
    line = _Line[tuple[T, R]](depth)
    thread = threading.Thread(target=_work, args=(items, prepare, line), name="prefetch", daemon=True)
    thread.start()
    try:
        yield line.taken()
    finally:
        line.close()
        thread.join()


def _work(items: Iterable[T], prepare: Callable[[T], R], line: _Line[tuple[T, R]]) -> None:
    try:
        following = iter(items)
        while line.wait_for_room():
            try:
                item = next(following)
            except StopIteration:
                break
            line.put((item, prepare(item)))
    except BaseException as error:  # noqa: BLE001  # raised again where the item is asked for
        line.end(error)
    else:
        line.end(None)


class _Line(Generic[T]):
    """What is prepared and not yet taken."""

    def __init__(self, depth: int) -> None:
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._depth, self._ended, self._closed = depth, False, False
        self._error: BaseException | None = None

    def wait_for_room(self) -> bool:
        """Wait until another may be prepared; False when no more is wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self._depth)
            return not self._closed

    def put(self, made: T) -> None:
        with self._changed:
            self._ready.append(made)
            self._changed.notify_all()

    def end(self, error: BaseException | None) -> None:
        """Say that nothing follows what is ready, and why if that is an error."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """Want no more."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()

    def taken(self) -> Iterator[T]:
        """What was prepared, in its order, then the error that ended it."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ready or self._ended or self._closed)
                if not self._ready:
                    break
                made = self._ready.popleft()
                self._changed.notify_all()
            yield made
        if self._error is not None and not self._closed:
            error, self._error = self._error, None
            raise error
