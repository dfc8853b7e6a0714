"""The watchdog: no progress for longer than the current phase may take, and the training process is ended.

How long a phase may take is learned from the run. Nothing is lost: the job goes on from its checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from qlora_engine.job import pulse
from qlora_engine.job.events import EventLog, file_sink
from qlora_engine.job.exits import Stall
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.pulse import Heartbeat
from qlora_worker.training import TrainingProcess

# What may take longer than a micro-batch before anything was learned: imports and a model from a slow disk, a
# large data set, the first compilation for Metal, a checkpoint or a whole model on a busy disk. Times the setting.
PATIENCE: Mapping[str, float] = {
    pulse.START: 2,
    "load": 6,
    "data": 6,
    "measure": 6,
    "compile": 3,
    "save": 2,
    "sample": 2,
    "write": 6,
}
TIMES_LONGEST = 10  # the longest that it has taken between two beats in this run
MOST_LEARNED = 6 * 3600.0  # seconds: what was held with SIGSTOP for a night would teach that nights are usual
LOOKS = 4  # at least, within the shortest allowed time
EVERY_SECONDS = 5.0  # a look is due, at the latest
DUMP_SECONDS = 3.0  # for writing the stacks
STOP_SECONDS = 10.0  # for a checkpoint, if the process comes back to life
MOST_STACKS = 20_000  # characters in an event


def allowed_seconds(heartbeat: Heartbeat, floor: float) -> float:
    """How long the phase may go without a beat.

    Args:
        heartbeat: phase, and the longest times between two beats of this run.
        floor: least time in training, seconds; other phases get a multiple of it.
    """
    least = floor * PATIENCE.get(heartbeat.phase, 1)
    learned = TIMES_LONGEST * heartbeat.gaps.get(heartbeat.phase, 0.0)
    return max(least, min(learned, MOST_LEARNED))


@dataclass(frozen=True)
class Seen:
    """What the watchdog has seen.

    Attributes:
        heartbeat: the newest.
        waited: seconds without another.
        looked: time of the last look, monotonic.
    """

    heartbeat: Heartbeat
    waited: float
    looked: float

    def look(self, found: Heartbeat | None, now: float, every: float) -> Seen:
        """What is seen at the next look.

        Time counts only as far as the watchdog looked: after a pause of its own (the machine slept, the worker was
        stopped) the training process has had a pause, too.

        Args:
            found: the pulse as it is now; None, or one of another attempt, says nothing new.
            now: monotonic.
            every: seconds after which the next look was due.
        """
        if found is not None and found.attempt == self.heartbeat.attempt and found.beats != self.heartbeat.beats:
            return Seen(found, 0.0, now)
        return replace(self, waited=self.waited + min(now - self.looked, 2 * every), looked=now)


class Watchdog:
    """Watches one training process.

    Args:
        run: the run folder.
        attempt: of the job.
        floor: least time in training that counts as a stall, seconds.
    """

    def __init__(self, run: RunFolder, attempt: int, floor: float) -> None:
        self._run, self._attempt, self._floor = run, attempt, floor
        before = pulse.read(run.pulse)
        gaps = before.gaps if before else {}
        self._seen = Seen(Heartbeat(attempt, gaps=gaps), 0.0, time.monotonic())
        self.stalled: Stall | None = None

    @property
    def every(self) -> float:
        """Seconds after which the next look is due; earlier ones do no harm."""
        return min(EVERY_SECONDS, self._floor / LOOKS)

    def look(self, training: TrainingProcess) -> None:
        """Look at the pulse; end the process if it has stalled."""
        self._seen = self._seen.look(pulse.read(self._run.pulse), time.monotonic(), self.every)
        if self.stalled is None and self._is_over() and not training.has_ended():
            self.stalled = Stall(phase=self._seen.heartbeat.phase, step=self._seen.heartbeat.step)
            self._say(_stacks(training, self._run.stacks))
            self._end(training)

    def _is_over(self) -> bool:
        return self._seen.waited >= allowed_seconds(self._seen.heartbeat, self._floor)

    def _say(self, stacks: str) -> None:
        heartbeat = self._seen.heartbeat
        with suppress(OSError):  # a full disk takes no line; the exit's record says it, too
            EventLog([file_sink(self._run.events)], job=self._run.id, attempt=self._attempt).emit(
                "training.stalled",
                phase=heartbeat.phase,
                step=heartbeat.step,
                seconds=round(self._seen.waited, 1),
                allowed=round(allowed_seconds(heartbeat, self._floor), 1),
                stacks=stacks,
            )

    def _end(self, training: TrainingProcess) -> None:
        training.ask_to_stop()
        if not training.wait(min(STOP_SECONDS, self._floor)):
            training.kill()


def _stacks(training: TrainingProcess, path: Path) -> str:
    """The stacks of the process's Python threads, which it appends to `path` when it is asked to; else why not."""
    before, was = _size(path), _status(training.pid)
    training.ask_for_stacks()
    end, last = time.monotonic() + DUMP_SECONDS, before
    while time.monotonic() < end and not training.wait(0.1):
        size = _size(path)
        if size == last > before:  # nothing was added since the last look
            break
        last = size
    if _size(path) == before:
        return f"none: the process ({was}) did not answer"
    with path.open("rb") as file:
        file.seek(before)
        text = file.read().decode(errors="replace").strip()
    return f"the process was {was}\n{text}"[:MOST_STACKS]


def _status(pid: int) -> str:
    try:
        return str(psutil.Process(pid).status())
    except psutil.Error:
        return "gone"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
