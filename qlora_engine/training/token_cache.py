"""Tokenized data files kept on disk under what decides their tokens, so that each is tokenized once."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

from qlora_engine.job import durable, lock
from qlora_engine.job.errors import SystemRefused
from qlora_engine.job.folder import Home
from qlora_engine.job.kept_tokens import LOCK, LOCK_SECONDS
from qlora_engine.training import token_entry
from qlora_engine.training.encode import Encoded
from qlora_engine.training.spool import Spool
from qlora_engine.training.token_key import TokenKey
from qlora_engine.training.token_rows import RowWriter, TokenRows, in_memory


class TokensDamaged(SystemRefused):
    """Kept tokens changed on disk while they were in use."""


@dataclass(frozen=True)
class TokenCache:
    """A folder with one entry a tokenized file.

    An entry appears whole or not at all. Whoever uses one holds a shared lock on it, so that it is not removed to
    make room; removing it by hand at any time harms nobody. A lock on the whole folder is held for moments, while
    an entry comes, goes or is opened.

    Attributes:
        folder: need not exist.
        limit: bytes; the entries that were not used for longest are removed over it, unless they are in use.
    """

    folder: Path
    limit: int

    @classmethod
    def of(cls, home: Home, gigabytes: float) -> Self | None:
        """The cache of a home; None where it may hold nothing."""
        return cls(home.tokens, int(1e9 * gigabytes)) if gigabytes else None

    def find(self, key: TokenKey) -> TokenRows | None:
        """The rows under a key; None without, or when they are damaged, which removes them."""
        entry = self.folder / key.name
        if not entry.is_dir():
            return None
        try:
            with self._alone():
                held = token_entry.Hold(entry)
            found = token_entry.opened(entry, held, self._giving_up(entry))
        except FileNotFoundError:  # a part of it was deleted
            found = None
        except OSError:  # this folder is not ours to write: then there is none for us
            return None
        if found is None:
            self._remove(entry)
        return found

    def keep(self, key: TokenKey, rows: Iterable[Encoded]) -> TokenRows:
        """Write rows under a key as they come; in memory where the disk takes no more: `spool.failure` says why.

        Whatever `rows` raises leaves nothing behind.
        """
        draft = self.folder / f"{durable.TEMPORARY}{secrets.token_hex(8)}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                held = token_entry.make(draft)
            writer = RowWriter(Spool(draft / token_entry.ROWS))
        except OSError as error:
            self._remove(draft)
            return in_memory(RowWriter(Spool(None, failure=error)).filled(rows))
        try:
            kept = self._finished(key, draft, writer.filled(rows))
        finally:
            self._remove(draft)
        if kept is None:
            return in_memory(writer)
        self._make_room()
        return TokenRows(writer.index(), writer.spool, self._giving_up(kept), held)

    def _finished(self, key: TokenKey, draft: Path, rows: RowWriter) -> Path | None:
        """Give the draft its name; None when the disk does not take it, and its rows are then in memory."""
        entry = self.folder / key.name
        try:
            token_entry.finish(draft, key, rows)
            with self._alone():
                if not entry.exists():  # else another process was faster, and its rows are the same
                    durable.move(draft, entry)
        except OSError as error:
            rows.spool.give_up_file(error)
            return None
        return entry

    def _make_room(self) -> None:
        """Remove what processes that were killed left, and what was not used for longest."""
        with contextlib.suppress(OSError), self._alone():
            entries = sorted((entry for entry in self.folder.iterdir() if entry.is_dir()), key=token_entry.used)
            over = sum(map(token_entry.size, entries)) - self.limit
            for entry in entries:
                left_over = entry.name.startswith(durable.TEMPORARY)
                if (left_over or over > 0) and not token_entry.in_use(entry):
                    over -= token_entry.size(entry)
                    _delete(entry)

    def _giving_up(self, entry: Path) -> Callable[[str], NoReturn]:
        def damaged(what: str) -> NoReturn:
            self._remove(entry)
            raise TokensDamaged(
                f"The tokens kept on disk have changed there: {what} is not what was written.",
                where=str(entry),
                remedy=f"Check the disk, delete {self.folder} if it is still there, and run the job again: it goes on "
                "from its checkpoint, and the tokens are made anew.",
            )

        return damaged

    def _remove(self, entry: Path) -> None:
        with contextlib.suppress(OSError):
            if entry.exists():
                with self._alone():
                    _delete(entry)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder's lock.

        Raises:
            OSError: it cannot be had.
        """
        try:
            held = lock.acquire(self.folder / LOCK, {"pid": os.getpid()}, wait=LOCK_SECONDS)
        except lock.LockHeld as error:
            raise TimeoutError(errno.ETIMEDOUT, f"{error}") from None
        with held:
            yield


def _delete(entry: Path) -> None:
    """Delete an entry, which first loses its name: one that is there is whole."""
    gone = entry.rename(entry.with_name(f"{durable.TEMPORARY}{secrets.token_hex(8)}"))
    shutil.rmtree(gone, ignore_errors=True)
