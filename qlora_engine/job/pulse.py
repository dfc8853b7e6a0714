"""The pulse of a training process: which phase it is in and how far it has come, for the worker that watches it."""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

START = "start"  # until the first phase: imports, the GPU lock
PHASES = (START, "load", "data", "measure", "compile", "train", "validate", "save", "test", "sample", "fuse", "write")
WIDTH = 512  # bytes of the one line, so that a write replaces the whole of the last
SUM = 9  # bytes of it: the CRC-32 of those before it, in hexadecimal digits, and the line's end


@dataclass(frozen=True)
class Heartbeat:
    """What a training process last said of itself.

    Attributes:
        attempt: of the job.
        phase: one of `PHASES`.
        step: micro-batches done.
        beats: grows with every sign of life; never falls within an attempt.
        gaps: by phase, the longest time between two beats of any attempt of this run, seconds.
    """

    attempt: int
    phase: str = START
    step: int = 0
    beats: int = 0
    gaps: Mapping[str, float] = field(default_factory=dict)


class Pulse:
    """The training process's side. Used by one thread; a beat takes 2 to 5 µs: a write into the system's cache.

    Until the first phase is entered, the file says what the attempt before this one said last.

    Args:
        path: the run folder's `pulse`; None says nothing (the foreground engine, which nobody watches).
        attempt: of the job.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path | None, attempt: int) -> None:
        self._attempt, self._phase, self._step, self._beats = attempt, START, 0, 0
        self._gaps: dict[str, float] = {}
        self._file: int | None = None
        if path is not None:
            before = read(path)
            self._gaps = dict(before.gaps) if before else {}
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._gaps_text = self._as_text()
        self._last = time.monotonic()

    @property
    def phase(self) -> str:
        """The phase that was entered last."""
        return self._phase

    def enter(self, phase: str) -> None:
        """Say that a phase begins, or goes on.

        Raises:
            ValueError: there is no such phase.
        """
        if phase not in PHASES:
            raise ValueError(f"{phase!r} is none of the phases {', '.join(PHASES)}")
        self._note_gap()
        self._phase = phase
        self._write()

    def beat(self, step: int) -> None:
        """Say that something has been done: a micro-batch, a batch of validation, a file.

        Args:
            step: micro-batches of training done.
        """
        self._note_gap()
        self._step = step
        self._write()

    def _note_gap(self) -> None:
        now = time.monotonic()
        gap = now - self._last
        self._last = now
        self._beats += 1
        if gap > self._gaps.get(self._phase, 0.0):
            self._gaps[self._phase] = gap
            self._gaps_text = self._as_text()

    def _as_text(self) -> str:
        return json.dumps({phase: round(gap, 3) for phase, gap in self._gaps.items()})

    def _write(self) -> None:
        if self._file is None:
            return
        line = (
            f'{{"attempt": {self._attempt}, "phase": "{self._phase}", "step": {self._step}, "beats": {self._beats}, '
            f'"gaps": {self._gaps_text}}}'
        )
        text = line.ljust(WIDTH - SUM).encode()
        # A full disk must not end the training: the next write, soon, may find room.
        with contextlib.suppress(OSError):
            os.pwrite(self._file, text + b"%08x\n" % zlib.crc32(text), 0)


def read(path: Path) -> Heartbeat | None:
    """What the training process last said; None when it said nothing yet or is just writing.

    A read may meet a write half-way, and a line made of two may be good JSON: only its sum tells.
    """
    try:
        line = path.read_bytes()[:WIDTH]
        if int(line[-SUM:], 16) != zlib.crc32(line[:-SUM]):
            return None
        value = json.loads(line[:-SUM])
        gaps = {str(phase): float(gap) for phase, gap in value["gaps"].items()}
        return Heartbeat(int(value["attempt"]), str(value["phase"]), int(value["step"]), int(value["beats"]), gaps)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
