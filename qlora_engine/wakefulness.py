"""While a training process runs the machine does not go to sleep by itself. What goes wrong with that harms no job."""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType
from typing import Self

from qlora_engine.host.awake import Awake
from qlora_engine.job.errors import ProgramFailed
from qlora_engine.job.events import EventLog


class Wakefulness:
    """Keeps the machine awake for one training process, and says how that goes.

    Args:
        pid: of the process, with which the program ends even if whoever started it is killed.
        log: receives the events.
        wanted: by the setting.
    """

    def __init__(self, pid: int, log: EventLog, *, wanted: bool) -> None:
        self._log = log
        self._awake: Awake | None = None
        if not wanted:
            return
        try:
            self._awake = Awake(pid)
        except (ProgramFailed, OSError) as error:
            self._say_failed(str(error))
            return
        if self._awake.pid is not None:
            with suppress(OSError):  # a full disk takes no line
                self._log.emit("awake.held", program=self._awake.program, pid=self._awake.pid)

    def look(self) -> None:
        """Say once if the program has ended. The process must live: with it the program ends as it should."""
        if self._awake is not None and (why := self._awake.failed()) is not None:
            self._say_failed(why)
            self._end()

    def _say_failed(self, why: str) -> None:
        with suppress(OSError):
            self._log.emit("awake.failed", what=why)

    def _end(self) -> None:
        if self._awake is not None:
            self._awake.end()
            self._awake = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
