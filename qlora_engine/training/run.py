"""One run, as one story: load, read the data, go on from the newest checkpoint, train, leave the result."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Literal

import mlx.core as mx

from qlora_engine.job.errors import TrainingFailed
from qlora_engine.job.events import EventLog
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.pulse import Pulse
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.training import memory, runtime, samples, tensor_file
from qlora_engine.training.adapters import save_adapters
from qlora_engine.training.choices import Choices
from qlora_engine.training.dropout import DropoutKey
from qlora_engine.training.earlier import Earlier
from qlora_engine.training.ladder import Ladder
from qlora_engine.training.loop import Loop
from qlora_engine.training.measured import Measured
from qlora_engine.training.memory import GIGA
from qlora_engine.training.model import Base, activation_type, add_adapters, count_parameters, load_base, vocabulary
from qlora_engine.training.optimizer import build_optimizer
from qlora_engine.training.phases import phase
from qlora_engine.training.progress import Progress
from qlora_engine.training.reporters import CLOSE_SECONDS, Reporters
from qlora_engine.training.resume import Checkpoints
from qlora_engine.training.rows import Data, plan_of, read_data, say_data
from qlora_engine.training.runtime import Runtime
from qlora_engine.training.starter import SHORT, Starter
from qlora_engine.training.step import TrainingStep
from qlora_engine.training.stop import StopRequest
from qlora_engine.training.token_cache import TokenCache
from qlora_engine.training.trainer import Trainer
from qlora_engine.training.tree import flat

FORM = "form"  # among what was chosen: whether the model's quantized weights were made float32, for the CPU
HURRY_SECONDS = 1.0  # that services have to take the last reports when training was asked to stop


class Outcome(StrEnum):
    """How training ended."""

    DONE = "done"
    STOPPED = "stopped"  # at a checkpoint, by request
    SMALLER = "smaller"  # out of memory; the next process goes on in a way that needs less


def train(
    job: ResolvedJob,
    run: RunFolder,
    *,
    attempt: int,
    log: EventLog,
    metrics: EventLog,
    stop: StopRequest,
    pulse: Pulse | None = None,
    cache: TokenCache | None = None,
    known: Measured | None = None,
    memory_share: float = 1.0,
) -> Outcome:
    """Train a job to its end or to the checkpoint where it was asked to stop.

    Args:
        job: as admitted.
        run: an existing folder; its newest whole checkpoint is gone on from.
        attempt: which process of the job this is, from 1; 0 in the foreground.
        log, metrics: receive the events; `metrics` those of every micro-batch.
        stop: already watching.
        pulse: tells whoever watches that training moves.
        cache: where tokens are kept for the next start; without it they are made at each.
        known: what was measured on this machine; without it that is measured anew.
        memory_share: of the device's memory that training may use at most.

    Raises:
        QloradError: it cannot be trained; with the remedy.
    """
    pulse = pulse or Pulse(None, attempt)
    ladder = Ladder(run, job.spec, attempt, log)
    ladder.heed_last_attempt()
    reporters = Reporters(job.spec, run, log)
    try:
        told = log.with_sink(reporters.sink)
        known = known or Measured(None)
        return _Run(job, run, ladder, told, metrics, stop, pulse, cache, known, memory_share).train()
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    finally:
        reporters.close(within=HURRY_SECONDS if stop.asked else CLOSE_SECONDS)
    ladder.step_down(reason, pulse.phase)
    return Outcome.SMALLER


@dataclass(frozen=True)
class _Run:
    """One process's part of a run."""

    job: ResolvedJob
    run: RunFolder
    ladder: Ladder
    log: EventLog
    metrics: EventLog
    stop: StopRequest
    pulse: Pulse
    cache: TokenCache | None
    known: Measured
    memory_share: float
    started: float = field(default_factory=time.perf_counter)

    def train(self) -> Outcome:
        """From nothing to the result."""
        with self.stop.nothing_to_lose():
            base, checkpoints, loop, prompts, earlier = self._set_up()
            progress = checkpoints.begin(earlier)
            if progress.saved < 0:
                self._sample(checkpoints.step, base, prompts, "before")
        base.model.train()
        with phase("train", self.log, self.pulse):
            progress = loop.run(progress)
        if not loop.complete(progress):
            return self._say_stopped(progress)
        check_learned(progress)
        kept = self._choose(checkpoints, progress)
        if self.job.spec.test:
            with phase("test", self.log, self.pulse):
                if loop.evaluate("test", self.job.spec.test_batches, progress.step) is None:
                    return self._say_stopped(progress)
        masters = tensor_file.on_host(flat(checkpoints.step.masters))
        adapters = save_adapters(self.run.adapters, masters, self.job)
        if not self._sample(checkpoints.step, base, prompts, "after"):
            return self._say_stopped(progress)
        self.log.emit(
            "training.done",
            step=progress.step,
            seconds=round(time.perf_counter() - self.started, 1),
            tokens=progress.tokens,
            loss_before=progress.loss_before,
            loss_after=progress.loss_last if kept == progress.step else progress.best_loss,
            kept="last" if kept == progress.step else "best",
            kept_step=kept,
            adapters=str(adapters),
        )
        return Outcome.DONE

    def _set_up(self) -> tuple[Base, Checkpoints, Loop, list[samples.Prompt], Earlier | None]:
        job, log, layout = self.job, self.log, self.ladder.layout
        found = runtime.settle(self.run, log)
        _say_started(found, log)
        limits = memory.set_limits(job.spec.memory, log, self.memory_share)
        dropout = DropoutKey()
        earlier = Earlier.of(self.run, log)
        with phase("load", self.log, self.pulse):
            base = load_base(job, dequantize=self._form(found, earlier))
            add_adapters(base, job.spec, dropout, recompute=layout.recompute)
            _say_loaded(job, base, log)
        with phase("data", self.log, self.pulse):
            data = read_data(job, base, layout, beat=lambda: self.pulse.beat(0), cache=self.cache, log=log)
            plan = plan_of(job, data.documents)
            say_data(job, data, plan, log)
            prompts = samples.prompts_of(job, base.tokenizer, data.format)
        # Before anything is recorded: a job that is refused goes on as it was when what has changed is put back.
        if earlier is None or not earlier.agrees(job, data.hashes, self.run, log):
            earlier, found = None, runtime.forget(self.run, found)
        found = self._record(found, base, data)
        with phase("measure", self.log, self.pulse):
            choices = Choices(job.spec, self.run, log, self.known, lambda: self.pulse.beat(0))
            found = choices.products(found, base, plan, limits)
            found = choices.recomputation(found, base, plan, limits)
            found = choices.siblings(found, base, plan)
            found, kernels = choices.kernels(found, base, plan)
            step = _step(job, base, dropout, compiled=found.compiled, joining="gradients" in kernels)
            found, packing = choices.packing(found, base, plan, step)
            # Of buffers as large as weights, which no batch asks for, the reserve would be full.
            mx.clear_cache()
        room = partial(memory.has_room, limits)
        checkpoints = Checkpoints(job, self.run, step, data.hashes, self.ladder, found, log, room)
        # Where the job sets a limit, memory counts for more than time.
        short = SHORT if found.compiled and job.spec.memory.limit_gb is None else 0.0
        trainer = Trainer(
            spec=job.spec,
            layout=layout,
            limits=limits,
            vocabulary=vocabulary(base.model),
            plan=plan,
            packing=packing,
            documents=data.documents["train"],
            step=step,
            starter=Starter(step, self.pulse, vocabulary(base.model), job.spec.seed, short),
            log=log,
            metrics=self.metrics,
            stop=self.stop,
            pulse=self.pulse,
        )
        loop = Loop(
            trainer, data.documents, checkpoints.save, checkpoints.poll, checkpoints.settle, checkpoints.roll_back
        )
        return base, checkpoints, loop, prompts, earlier

    def _form(self, found: Runtime, earlier: Earlier | None) -> bool | None:
        """Whether the base model's weights are made float32 on the CPU: as when the run began; None if that is open.

        What fits into memory now need not have fitted then, and the two forms round otherwise.
        """
        if earlier is None or FORM not in found.chosen or not earlier.has_model_of(self.job):
            return None  # a run that starts over may have another model, of another size
        return bool(found.chosen[FORM]["dequantized"])

    def _record(self, found: Runtime, base: Base, data: Data) -> Runtime:
        """Write down what loading has shown and later processes of the run must know."""
        if found.backend == "cpu" and base.bits is not None and FORM not in found.chosen:
            found = runtime.record(self.run, found, FORM, {"dequantized": base.dequantized})
        if not self.job.data:  # of files the job says it
            found = runtime.record(self.run, found, runtime.FORMAT, data.format)
        return found

    def _choose(self, checkpoints: Checkpoints, progress: Progress) -> int:
        """Put the weights that are the result into the step; the step that they stand at."""
        if self.job.spec.keep == "last" or progress.best_step in (None, progress.step):
            return progress.step
        best = checkpoints.take_best(progress)
        return progress.step if best is None else best

    def _sample(
        self, step: TrainingStep, base: Base, prompts: list[samples.Prompt], when: Literal["before", "after"]
    ) -> bool:
        """Ask what there is to be asked; False if a stop was asked for midway."""
        if not prompts:
            return True
        with phase("sample", self.log, self.pulse):
            model = step.sync_model()
            answers = samples.answer(model, base.tokenizer, prompts, stop=self.stop, when=when, log=self.log)
        return answers is not None

    def _say_stopped(self, progress: Progress) -> Outcome:
        self.log.emit("training.stopped", step=progress.step)
        return Outcome.STOPPED


def check_learned(progress: Progress) -> None:
    """Raise `TrainingFailed` when a whole run has not changed the weights once."""
    if progress.update == 0 and progress.step > 0:
        raise TrainingFailed(
            "No optimizer step of the run could be applied.",
            where=f"{progress.step} micro-batches, {progress.tokens} targets",
            remedy="Look at the `guard.dropped` events: they name the rows and the values that were wrong. Where there "
            "are none, the rows of these micro-batches have nothing to learn: raise iters; `nothing_to_learn` in the "
            "event `data.loaded` says how many are such rows.",
        )


def _step(job: ResolvedJob, base: Base, dropout: DropoutKey, *, compiled: bool, joining: bool) -> TrainingStep:
    spec = job.spec
    return TrainingStep(
        base.model,
        build_optimizer(spec),
        activations=activation_type(base.model),
        dropout=dropout,
        grad_clip=spec.grad_clip,
        max_loss=spec.max_loss,
        lora_plus_ratio=spec.lora_plus_ratio,
        compiled=compiled,
        joining=joining,
    )


def _say_started(found: Runtime, log: EventLog) -> None:
    used = found.blas or {}
    log.emit(
        "training.started",
        pid=os.getpid(),
        backend=found.backend,
        device=found.device,
        versions=found.versions,
        blas=used.get("library"),
        threads=used.get("threads"),
    )


def _say_loaded(job: ResolvedJob, base: Base, log: EventLog) -> None:
    total, trainable = count_parameters(base.model)
    log.emit(
        "model.loaded",
        model=job.model_path or job.spec.model,
        model_type=base.config.get("model_type"),
        bits=base.bits,
        quantized_on_load=base.quantized_on_load,
        dequantized=base.dequantized,
        parameters=total,
        trainable=trainable,
        memory_gb=round(mx.get_active_memory() / GIGA, 3),
    )
