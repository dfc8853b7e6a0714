"""The real training loop and checkpoints over a model and rows made in memory: a run in a tenth of a second."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from numpy.typing import ArrayLike

from qlora_engine.job.datafiles import Split
from qlora_engine.job.events import Event, EventLog
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.preflight.batch import Grid
from qlora_engine.job.pulse import Pulse
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.spec import JobSpec
from qlora_engine.training import memory
from qlora_engine.training.batches import Plan
from qlora_engine.training.data import Document
from qlora_engine.training.dropout import DropoutKey
from qlora_engine.training.earlier import Earlier
from qlora_engine.training.ladder import Ladder, Layout
from qlora_engine.training.loop import Loop
from qlora_engine.training.memory import Device
from qlora_engine.training.model import vocabulary
from qlora_engine.training.optimizer import build_optimizer
from qlora_engine.training.packing import Packing
from qlora_engine.training.progress import Progress
from qlora_engine.training.recompute import checkpoint_layers
from qlora_engine.training.results import StartedMicroBatch, StartedUpdate
from qlora_engine.training.resume import Checkpoints
from qlora_engine.training.runtime import Runtime
from qlora_engine.training.starter import Starter
from qlora_engine.training.step import TrainingStep
from qlora_engine.training.stop import StopRequest
from qlora_engine.training.targets import Targets
from qlora_engine.training.trainer import Trainer
from support.small import Arrays, llama_model, masters, state, with_adapters

MakeModel = Callable[[DropoutKey], nn.Module]
KEYS: dict[str, Any] = {
    "batch_size": 2,
    "grad_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "epochs": 1.0,
    "save_every": 4,
    "steps_per_eval": 4,
    "steps_per_report": 3,
    "val_batches": -1,
    "checkpoint_minutes": 0.0,
    "max_seq_length": 64,
}


def small_model(source: DropoutKey) -> nn.Module:
    """One layer, adapters with dropout."""
    return with_adapters(llama_model(layers=1, hidden=16), dropout=0.1, source=source)


def numbered(count: int, *, width: int = 9, longest: int = 64, seed: int = 0) -> list[Document]:
    """Rows whose first two tokens say their number, of mixed lengths, all of them targets."""
    draw = np.random.default_rng(seed)
    return [
        document([1 + row // 60, 1 + row % 60, *draw.integers(1, 61, draw.integers(1, width)).tolist()][:longest])
        for row in range(count)
    ]


def number_of(inputs: ArrayLike) -> int:
    """The number of a `numbered` row."""
    first, second = np.asarray(inputs)[:2]
    return 60 * (int(first) - 1) + int(second) - 1


def numbers_of(targets: Targets) -> list[int]:
    """The numbers of all `numbered` rows in a batch, joined or not."""
    if targets.segments is None:
        return [number_of(inputs) for inputs in targets.inputs]
    numbers = []
    for inputs, segments in zip(targets.inputs, targets.segments, strict=True):
        numbers += [number_of(inputs[segments == segment]) for segment in range(1, segments.max() + 1)]
    return numbers


def document(tokens: ArrayLike) -> Document:
    """A row; all of its tokens but the first are targets."""
    array = np.asarray(tokens, np.int32)
    supervised = np.ones(len(array), np.bool_)
    supervised[0] = False
    return Document(array, supervised)


class RecordingStep(TrainingStep):
    """Notes the rows that are applied and the losses, and may ask for a stop after some micro-batches."""

    def __init__(self, *arguments: Any, stop: StopRequest, stop_after: int, **keys: Any) -> None:
        self.applied: list[int] = []
        self.losses: list[float] = []
        self._pending: list[int] = []
        self._stop, self._stop_after = stop, stop_after
        super().__init__(*arguments, **keys)

    def start(self, targets: Targets, key: Any) -> StartedMicroBatch:
        """As the step does."""
        started = super().start(targets, key)
        self._pending += numbers_of(targets)
        self.losses.append(started.result().loss)
        if len(self.losses) == self._stop_after:
            self._stop.request("the test")
        return started

    def start_update(self) -> StartedUpdate:
        """As the step does."""
        self.applied += self._pending
        return super().start_update()

    def discard(self) -> None:
        """As the step does; `start_update` ends with it."""
        self._pending = []
        super().discard()


@dataclass
class Process:
    """What one process of a run has: everything made anew but the folder.

    Args:
        folder: the run's.
        train, valid: rows.
        make: the model.
        stop_after: ask for a stop after so many micro-batches of this process; 0 for none.
        hashes: of the data files.
        layout: in place of the job's own.
        joined: rows may hold several documents.
        beside: checkpoints are written while training goes on.
        eager: begin every window's first micro-batch before the results of the window before are read.
        keys: of the job.
    """

    folder: Path
    train: Sequence[Document]
    valid: Sequence[Document] = ()
    make: MakeModel = small_model
    stop_after: int = 0
    hashes: Mapping[Split, str] = field(default_factory=dict)
    layout: Layout | None = None
    joined: bool = False
    eager: bool = False
    beside: bool = True
    attempt: int = 0
    keys: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.events: list[Event] = []
        self.metrics: list[Event] = []
        self.stop = StopRequest()
        self.spec = JobSpec(**(KEYS | dict(self.keys)))
        self.job = ResolvedJob(spec=self.spec)
        self.run = RunFolder(self.folder)
        self.run.checkpoints.mkdir(parents=True, exist_ok=True)
        self.log = log = EventLog([self.events.append])
        source = DropoutKey()
        model = self.make(source)
        self.ladder = Ladder(self.run, self.spec, self.attempt, log)
        layout = self.layout or self.ladder.layout
        if layout.recompute:
            checkpoint_layers(model.layers)
        model.train()
        self.step = RecordingStep(
            model,
            build_optimizer(self.spec),
            activations=mx.float32,
            dropout=source,
            grad_clip=self.spec.grad_clip,
            max_loss=self.spec.max_loss,
            lora_plus_ratio=self.spec.lora_plus_ratio,
            compiled=False,
            stop=self.stop,
            stop_after=self.stop_after,
        )
        plan = Plan.of(
            self.train,
            batch_size=self.spec.batch_size,
            accumulation=self.spec.grad_accumulation_steps,
            seed=self.spec.seed,
            iters=self.spec.iters,
            epochs=self.spec.epochs,
        )
        self.checkpoints = Checkpoints(
            self.job, self.run, self.step, self.hashes, self.ladder, _runtime(), log, lambda _: self.beside
        )
        short = math.inf if self.eager else 0.0
        trainer = Trainer(
            spec=self.spec,
            layout=layout,
            limits=memory.limits_of(self.spec.memory, Device.found()),
            vocabulary=vocabulary(model),
            plan=plan,
            packing=Packing(self.joined, grid=Grid(1), attention=1e9, longest=plan.widest, widest=plan.widest),
            documents=self.train,
            step=self.step,
            starter=Starter(self.step, Pulse(None, 0), vocabulary(model), self.spec.seed, short),
            log=log,
            metrics=EventLog([self.metrics.append]),
            stop=self.stop,
            pulse=Pulse(None, self.attempt),
        )
        documents = {"train": self.train, "valid": self.valid}
        saver = self.checkpoints
        self.loop = Loop(trainer, documents, saver.save, saver.poll, saver.settle, saver.roll_back)

    def go(self) -> Progress:
        """Go on from the newest checkpoint to the end or the stop."""
        return self.loop.run(self.begin())

    def begin(self) -> Progress:
        """Go on from the newest checkpoint, or start."""
        earlier = Earlier.of(self.run, self.log)
        agrees = earlier is not None and earlier.agrees(self.job, self.hashes, self.run, self.log)
        return self.checkpoints.begin(earlier if agrees else None)

    def said(self, name: str) -> list[Event]:
        """The events of a kind."""
        return [event for event in self.events if event["event"] == name]

    @property
    def masters(self) -> Arrays:
        """The trained weights."""
        return masters(self.step)

    @property
    def state(self) -> Arrays:
        """Weights and optimizer."""
        return state(self.step)


def until_done(make: Callable[[int], Process], *, most: int = 200) -> tuple[list[Process], Progress]:
    """Processes of one run, one after the other, until it is complete."""
    processes: list[Process] = []
    while len(processes) < most:
        processes.append(make(len(processes)))
        progress = processes[-1].go()
        if processes[-1].loop.complete(progress):
            return processes, progress
    raise AssertionError("the run does not come to its end")


@cache
def _runtime() -> Runtime:
    return Runtime.found()
