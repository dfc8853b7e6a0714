"""What a run settles before its first step: how it multiplies with frozen matrices and lays documents out.

Each is measured or derived once, said by an event, and written to the run folder, so that a resumed run does the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qlora_engine.job.events import EventLog
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.preflight.backends import BACKENDS, Name
from qlora_engine.job.preflight.batch import Batch
from qlora_engine.job.preflight.memory import GIGA, ROOM, estimate, least_recomputation
from qlora_engine.job.preflight.shape import ModelShape, ShapeUnknown
from qlora_engine.job.spec import JobSpec
from qlora_engine.training import frozen_choice, own_kernels, packing_choice, runtime, siblings
from qlora_engine.training.batches import Plan
from qlora_engine.training.frozen import quantized_layers
from qlora_engine.training.measured import Measured
from qlora_engine.training.memory import Limits
from qlora_engine.training.model import Base, activation_type, count_parameters, vocabulary
from qlora_engine.training.packing import Packing
from qlora_engine.training.recompute import checkpoint_layers, recomputes
from qlora_engine.training.runtime import Runtime
from qlora_engine.training.step import TrainingStep

MARGIN = 1.08  # between the estimate and the limit


@dataclass(frozen=True)
class Choices:
    """Settles what a run does.

    Attributes:
        known: what was measured on this machine before.
        beat: called between measurements.
    """

    spec: JobSpec
    run: RunFolder
    log: EventLog
    known: Measured
    beat: Callable[[], None]

    def products(self, found: Runtime, base: Base, plan: Plan, limits: Limits) -> Runtime:
        """Have the base model multiply in the ways that are fastest here; on the CPU its weights are float32."""
        kind = activation_type(base.model)
        if "products" in found.chosen:
            frozen_choice.apply(base.model, frozen_choice.Choice.of(found.chosen["products"]), kind)
            return found
        if found.backend == "cpu" or not quantized_layers(base.model):
            return found
        rows = self._usual_rows(plan)
        timings = frozen_choice.measure(base.model, rows, kind, about=_about(found), known=self.known, beat=self.beat)
        choice = frozen_choice.choose(base.model, timings, kind, self._room(found, base, plan, limits))
        self.log.emit(
            "products.chosen",
            kept=choice.kept,
            ways={f"{shape.outputs}×{shape.inputs}": [ways.forward, ways.backward] for shape, ways in choice.ways},
            seconds={
                f"{shape.outputs}×{shape.inputs}": {
                    "quantized": timing.quantized, "dequantized": timing.dequantized, "kept": timing.kept,
                }
                for shape, timing in timings.items()
            },
            rows=rows,
        )  # fmt: skip
        frozen_choice.apply(base.model, choice, kind)
        return runtime.record(self.run, found, "products", choice.as_json())

    def recomputation(self, found: Runtime, base: Base, plan: Plan, limits: Limits) -> Runtime:
        """Have as few layers computed again as the memory allows, where the job leaves that open.

        A resumed run computes no fewer again than before, but more if it may use less.
        """
        layers = base.model.layers[-self.spec.num_layers if self.spec.num_layers > 0 else 0 :]
        before = found.chosen.get("recomputed", 0)
        again = max(before, self._least_recomputation(found, base, plan, limits))
        if again > before:
            limit = None if limits.limit is None else round(limits.limit / GIGA, 3)
            self.log.emit("recomputation.chosen", layers=again, of=len(layers), limit_gb=limit)
            found = runtime.record(self.run, found, "recomputed", again)
        checkpoint_layers(layers[:again])
        return found

    def _least_recomputation(self, found: Runtime, base: Base, plan: Plan, limits: Limits) -> int:
        if limits.limit is None or self.spec.grad_checkpoint:
            return 0
        try:
            shape = ModelShape.of(base.config)
        except ShapeUnknown:
            return 0
        batch, backend = self._widest(found, plan), BACKENDS[_name(found)]
        limit = limits.limit / MARGIN
        return least_recomputation(self.spec, shape, batch, backend, dequantized=base.dequantized, limit=limit)

    def siblings(self, found: Runtime, base: Base, plan: Plan) -> Runtime:
        """Have adapted layers that read the same input compute as one, where that is faster and memory is not short."""
        before = found.chosen.get("siblings")
        short = self.spec.grad_checkpoint or found.chosen.get("recomputed", 0)
        groups = [] if found.backend == "cpu" or short or before is False else siblings.bring_together(base.model)
        if before is not None or not groups:
            return found
        kind, rows = activation_type(base.model), self._rows_to_measure(plan)
        question = {"what": "siblings", "rows": rows, **self._about_model(found, base)}
        apart, together = self.known.answer(question) or siblings.measure(groups, rows, kind)
        self.known.note(question, (apart, together))
        chosen = siblings.faster(apart, together)
        if not chosen:
            for group in groups:
                group.part()
        self.log.emit("siblings.chosen", together=chosen, seconds_apart=apart, seconds_together=together, rows=rows)
        return runtime.record(self.run, found, "siblings", chosen)

    def kernels(self, found: Runtime, base: Base, plan: Plan) -> tuple[Runtime, list[str]]:
        """Have kernels of our own compute what they compute sooner than MLX's; there are some on CUDA.

        Not where memory is short, which was not measured with them, and not in a short run, which is over before they
        are compiled. A run that was laid out before there were any goes on without; so does one on another backend.

        Returns:
            What was found, and the names of those that are used.
        """
        before = found.chosen.get("kernels")
        short = recomputes(base.model) or self.spec.memory.limit_gb is not None
        fresh = "packing" not in found.chosen and plan.steps >= own_kernels.LONG_ENOUGH
        if found.backend != "cuda" or short or not (before or fresh):
            return found, []
        kind, rows = activation_type(base.model), self._rows_to_measure(plan)
        timings: own_kernels.Timings = {}

        refused: list[str] = []

        def failed(name: str, why: str) -> None:
            refused.append(name)
            self.log.emit("kernels.failed", name=name, why=why)

        if before is None:
            question = {"what": "kernels", "rows": rows, **self._about_layers(found, base)}
            known = self.known.answer(question)
            timings = own_kernels.measure(base.model, rows, kind, failed) if known is None else known
            if not refused:  # another driver may not refuse them, and the next run shall say so if it does
                self.known.note(question, timings)
        # At every start: drivers compile them anew, and change without a version that MLX or we would know.
        wanted = own_kernels.faster(timings) if before is None else before
        chosen = own_kernels.agreeing(base.model, wanted, rows, kind, failed)
        if before is None:
            self.log.emit("kernels.chosen", names=chosen, seconds=timings, rows=rows)
            found = runtime.record(self.run, found, "kernels", chosen)
        elif chosen != before:
            self.log.emit("environment.changed", name="kernels", then=before, now=chosen)
        own_kernels.use(base.model, chosen, packing_choice.widest_row(plan, found.backend))
        return found, chosen

    def packing(self, found: Runtime, base: Base, plan: Plan, step: TrainingStep) -> tuple[Runtime, Packing]:
        """How documents are laid out in rows."""
        before = packing_choice.recorded(found.chosen.get("packing"), self.spec.packing, plan, found.backend)
        if before is not None:
            return found, before
        about = self._about_layers(found, base) | {"kernels": found.chosen.get("kernels")}
        choice = packing_choice.choose(
            self.spec.packing,
            plan,
            step,
            base.model,
            model_type=base.config.get("model_type"),
            vocabulary=vocabulary(base.model),
            backend=found.backend,
            about=about,
            known=self.known,
        )
        self.log.emit("packing.chosen", **choice.as_event())
        return runtime.record(self.run, found, "packing", choice.as_json(self.spec.packing)), choice.packing

    def _about_model(self, found: Runtime, base: Base) -> dict[str, Any]:
        """What the times of a whole step depend on."""
        return {
            **_about(found),
            "config": json.dumps(base.config, sort_keys=True, default=str),
            "trainable": count_parameters(base.model)[1],
            "recompute": self.spec.grad_checkpoint,
            "products": found.chosen.get("products"),
        }

    def _about_layers(self, found: Runtime, base: Base) -> dict[str, Any]:
        """The same where layers that read one input may compute as one."""
        return self._about_model(found, base) | {"siblings": found.chosen.get("siblings")}

    def _usual_rows(self, plan: Plan) -> int:
        """Positions of a usual micro-batch."""
        return self.spec.batch_size * int(np.median(packing_choice.first_inputs(plan)))

    def _rows_to_measure(self, plan: Plan) -> int:
        """About as many, so that like jobs ask the same."""
        return min(frozen_choice.MOST_ROWS, 1 << (self._usual_rows(plan) - 1).bit_length())

    def _room(self, found: Runtime, base: Base, plan: Plan, limits: Limits) -> float:
        """Bytes that the job leaves; none where its need is not known."""
        try:
            shape = ModelShape.of(base.config)
        except ShapeUnknown:
            return 0.0
        batch, backend = self._widest(found, plan), BACKENDS[_name(found)]
        need = estimate(self.spec, shape, batch, backend, dequantized=False).total
        return ROOM * (limits.limit or limits.device) - need

    def _widest(self, found: Runtime, plan: Plan) -> Batch:
        longest, rows = plan.widest + 1, len(plan.lengths)
        return Batch.widest(self.spec, rows=rows, longest=longest, targets=longest - 1, backend=found.backend)


def _name(found: Runtime) -> Name:
    return "cpu" if found.backend == "cpu" else "metal" if found.backend == "metal" else "cuda"


def _about(found: Runtime) -> dict[str, Any]:
    """What times depend on beside the job."""
    return {"device": found.device, "backend": found.backend, "versions": found.versions, "blas": found.blas}
