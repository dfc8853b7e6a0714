"""The ladder that training steps down when memory runs out: ways to train the same job that need less."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qlora_engine.job import durable, pulse
from qlora_engine.job.errors import OutOfMemory
from qlora_engine.job.events import EventLog
from qlora_engine.job.exits import ExitRecord
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.formats import LADDER, NewerFormat
from qlora_engine.job.spec import JobSpec

SHORTEST = 128  # tokens; shorter sequences teach little
NOTHING_TO_LAY_OUT = frozenset({"start", "load", "data"})  # phases that every layout needs alike

REMEDY = (
    "Use a smaller model or a narrower quantization, fewer num_layers, a lower max_seq_length, "
    "or give it more memory: close other programs, raise memory.limit_gb."
)


@dataclass(frozen=True)
class Layout:
    """How a micro-batch is computed. No layout changes what is learned, but for `longest`.

    Attributes:
        recompute: keep each layer's input alone and compute the layer again in the backward pass.
        rows: of a micro-batch that are computed at once; the rest waits its turn.
        longest: tokens of a row that are used.
    """

    recompute: bool
    rows: int
    longest: int

    @classmethod
    def of(cls, spec: JobSpec) -> Layout:
        """As the job asks for."""
        return cls(spec.grad_checkpoint, spec.batch_size, spec.max_seq_length)


@dataclass(frozen=True)
class Rung:
    """One step down: its name, what it changes in words, and the layout that it leads to."""

    name: str
    change: str
    layout: Layout


def next_rung(layout: Layout, spec: JobSpec) -> Rung | None:
    """The next step down from a layout, or None when the job allows no more."""
    if spec.on_out_of_memory == "fail":
        return None
    if not layout.recompute:
        return Rung("recompute", "layers are computed again in the backward pass", replace(layout, recompute=True))
    if layout.rows > 1:
        rows = layout.rows // 2
        at_once = f"{rows} rows" if rows > 1 else "one row"
        return Rung("split", f"micro-batches are computed {at_once} at a time", replace(layout, rows=rows))
    if spec.on_out_of_memory == "truncate" and layout.longest > SHORTEST:
        longest = max(SHORTEST, layout.longest // 2)
        return Rung("truncate", f"rows are cut after {longest} tokens", replace(layout, longest=longest))
    return None


class Ladder:
    """The ladder of one run, kept in its folder, so that an attempt goes on with what the one before found.

    Args:
        run: the run folder.
        spec: the job.
        attempt: which attempt this process is.
        log: receives `ladder.rung` and `ladder.damaged`.
    """

    def __init__(self, run: RunFolder, spec: JobSpec, attempt: int, log: EventLog) -> None:
        self._run, self._spec, self._attempt, self._log = run, spec, attempt, log
        self._taken: list[dict[str, Any]] = []
        self.layout = Layout.of(spec)
        if run.ladder.exists():
            self._take_up(run.ladder)

    def _take_up(self, file: Path) -> None:
        """Go on with the rungs that were taken. Of a damaged file none is known: they are taken again as needed.

        Raises:
            NewerFormat: a newer qlorad has taken them.
        """
        try:
            kept = LADDER.upgraded(json.loads(file.read_bytes()), file)
            rungs = [{key: rung[key] for key in ("rung", "change", "reason", "after")} for rung in kept["taken"]]
            self._taken, self.layout = rungs, _within(Layout(**kept["layout"]), self.layout)
        except NewerFormat:
            raise
        except (ValueError, KeyError, TypeError, AttributeError):
            self._log.emit("ladder.damaged", path=str(file))

    def heed_last_attempt(self) -> None:
        """Step down if the attempt before this one was ended for want of memory.

        Raises:
            OutOfMemory: no layout that the job allows needs less.
        """
        before = self._attempt - 1
        ended = self._end_of(before) if before > 0 else None
        if ended is None or ended.memory is None or any(taken["after"] == before for taken in self._taken):
            return
        heard = pulse.read(self._run.pulse)
        phase = heard.phase if heard is not None and heard.attempt == before else "train"
        self.step_down(ended.memory, phase, after=before)

    def _end_of(self, attempt: int) -> ExitRecord | None:
        try:
            return ExitRecord.load(self._run.exit(attempt))
        except ValueError:
            return None  # damaged: as good as none, for the daemon, too

    def step_down(self, reason: str, phase: str, *, after: int | None = None) -> None:
        """Lay training out anew; written down before anything is said.

        Args:
            reason: how it showed that memory had run out.
            phase: of training, when it did.
            after: the attempt that ran out of memory; this one when left out.

        Raises:
            OutOfMemory: no layout that the job allows needs less.
        """
        rung = None if phase in NOTHING_TO_LAY_OUT else next_rung(self.layout, self._spec)
        if rung is None:
            doing = "loading the model or its data" if phase in NOTHING_TO_LAY_OUT else "training"
            raise OutOfMemory(f"Memory ran out while {doing}: {reason}.", where=f"phase {phase}", remedy=REMEDY)
        self._taken.append(
            {"rung": rung.name, "change": rung.change, "reason": reason, "after": after or self._attempt}
        )
        self.layout = rung.layout
        kept = {"format": LADDER.current, "layout": asdict(self.layout), "taken": self._taken}
        durable.write_json(self._run.ladder, kept)
        self._log.emit(
            "ladder.rung",
            rung=rung.name,
            change=rung.change,
            reason=reason,
            effective_batch=self._spec.batch_size * self._spec.grad_accumulation_steps,
        )

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"layout": asdict(self.layout), "rungs": [taken["rung"] for taken in self._taken]}


def _within(kept: Layout, asked: Layout) -> Layout:
    """The layout of an earlier attempt, no larger than the job asks for now: it may have changed since."""
    return Layout(kept.recompute or asked.recompute, min(kept.rows, asked.rows), min(kept.longest, asked.longest))
