"""The peak memory of a job, by shapes: what is held at each full moment of training, and the fullest of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from qlora_engine.job.preflight.backends import LOGITS_BYTES, Backend, Tensors
from qlora_engine.job.preflight.batch import BLOCK_BYTES, CHUNK, Batch
from qlora_engine.job.preflight.shape import Linear, ModelShape
from qlora_engine.job.spec import JobSpec

GIGA = 1e9
ROOM = 0.8  # of the memory that training may use, up to which it is filled for the sake of speed
F32 = 4
# Copies in float32 that unpacking a quantized matrix makes beside its result.
UNPACKED = 2.5
# Optimizers whose adapters are joined into vectors, as in qlora_engine.training.vectors.
ELEMENTWISE = ("adam", "adamw", "sgd")
# Numbers an optimizer keeps for each trained one. Adafactor keeps a row and a column of each matrix.
OPTIMIZER_STATE = {"adam": 2.0, "adamw": 2.0, "muon": 1.0, "sgd": 1.0, "adafactor": 0.05}


@dataclass(frozen=True)
class Estimate:
    """The estimated peak.

    Attributes:
        parts: bytes at the fullest moment, by what they are for.
        moment: which moment that is: load, loss, backward or update.
        batch: that it was computed for.
        rough: why it is only near, or None.
    """

    parts: Mapping[str, float]
    moment: str
    batch: Batch
    rough: str | None = None

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(self.parts.values())

    def fits(self, limit: float) -> bool:
        """Whether it stays under `limit` bytes."""
        return self.total <= limit


def estimate(
    spec: JobSpec, shape: ModelShape, batch: Batch, backend: Backend, *, dequantized: bool, kept: bool = False
) -> Estimate:
    """The peak memory of training.

    Args:
        dequantized: quantized weights are made float32 when they are loaded, as on the CPU where they fit.
        kept: matrices are dequantized before training, as on a GPU where that is faster and there is room.
    """
    job = _Job(spec, shape, batch, backend, dequantized, kept)
    moments = {
        "load": job.load(),
        "loss": job.loss(),
        "backward": job.backward(),
        "gradients": job.gathered(),
        "update": job.update(),
    }
    for moment in ("loss", "backward"):  # at the others little is under way
        moments[moment]["allocator"] = _ahead(sum(moments[moment].values()), spec, backend)
    fullest = max(moments, key=lambda moment: sum(moments[moment].values()))
    parts = {name: size for name, size in moments[fullest].items() if size}
    parts["allocator"] = parts.get("allocator", 0.0) + (backend.slack - 1) * sum(parts.values())
    return Estimate(parts, fullest, batch, shape.rough)


def _ahead(held: float, spec: JobSpec, backend: Backend) -> float:
    """Bytes that operations under way hold beside what is needed: MLX starts none at the limit that the job sets."""
    limit = spec.memory.limit_gb
    return backend.ahead if limit is None else min(backend.ahead, max(0.0, limit * GIGA - held))


def least_recomputation(
    spec: JobSpec, shape: ModelShape, batch: Batch, backend: Backend, *, dequantized: bool, limit: float
) -> int:
    """How many of the trained layers must be computed again for the job to stay under `limit` bytes.

    All of them where even that is not enough.
    """
    layers = trained_layers(spec, shape)
    for again in range(layers):
        if estimate(spec, shape, batch.recomputed(again / layers), backend, dequantized=dequantized).fits(limit):
            return again
    return layers


def trained_layers(spec: JobSpec, shape: ModelShape) -> int:
    """How many layers have adapters or are trained in full."""
    return shape.layers if spec.num_layers < 0 else min(spec.num_layers, shape.layers)


def adapted(spec: JobSpec, shape: ModelShape) -> tuple[Linear, ...]:
    """The linear layers of a trained layer that get an adapter."""
    keys = spec.lora_parameters.keys
    if spec.fine_tune_type == "full" or keys is None:
        return shape.linears
    return tuple(linear for linear in shape.linears if linear.name in keys)


def trained_parameters(spec: JobSpec, shape: ModelShape) -> int:
    """Numbers that training changes in one layer."""
    if spec.fine_tune_type == "full":
        return shape.layer + 2 * shape.hidden
    rank = spec.lora_parameters.rank
    each = (linear.copies * rank * (linear.inputs + linear.outputs) for linear in adapted(spec, shape))
    magnitudes = sum(linear.outputs for linear in adapted(spec, shape)) if spec.fine_tune_type == "dora" else 0
    return sum(each) + magnitudes


def weight_bytes(spec: JobSpec, shape: ModelShape, *, dequantized: bool) -> float:
    """The base model in memory as it is trained with."""
    if dequantized:
        return F32 * shape.parameters
    bits, group = shape.bits, shape.group
    if bits is None:
        if spec.fine_tune_type == "full":
            return shape.stored * shape.parameters
        bits, group = 4, 64  # quantized on load
    return shape.parameters * (bits / 8 + 2 * 2 / group)


@dataclass(frozen=True)
class _Job:
    spec: JobSpec
    shape: ModelShape
    batch: Batch
    backend: Backend
    dequantized: bool
    kept_whole: bool

    # The moments

    def load(self) -> dict[str, float]:
        """The weights, and while they are changed one of them in several forms.

        The embedding comes first and an output layer of its own last, when all others are there.
        """
        shape, matrix = self.shape, self.shape.vocabulary * self.shape.hidden
        bits = shape.stored * 8 if shape.bits is None else shape.bits + 32 / shape.group
        widest = max(linear.weights for linear in shape.linears)
        if not self.dequantized:
            return {"base weights": self.weights, "loading": max(matrix, widest) * bits / 8}
        beside = UNPACKED * F32 * (widest if shape.tied else max(matrix, widest))
        first = ((1 + UNPACKED) * F32 + bits / 8) * matrix - self.weights
        return {"base weights": self.weights, "loading": max(beside, first)}

    def loss(self) -> dict[str, float]:
        """The forward pass has been computed; a chunk of logits is there."""
        return self.steady() | {"activations": self.kept(), "output layer": self.logits() + self.output_matrix()}

    def backward(self) -> dict[str, float]:
        """The topmost layer's backward pass; everything below still waits for its own."""
        # The topmost layer is the last to be computed again: where it is not, none of its inner tensors are new.
        inner = self.kept_by_layer() if self.batch.recompute >= 1 else 0.0
        if trained_layers(self.spec, self.shape) > 1:
            inner *= 1 + self.backend.again
        return self.steady() | {
            "gradients": self.window() + self.gradients(),
            "activations": self.kept(),
            "working memory": inner + self.size(self.backend.working) + self.matrix(),
        }

    def gathered(self) -> dict[str, float]:
        """The gradients of a micro-batch are there, and are added to the window's."""
        joined = self.gradients() if self.vectors else 0.0
        added = F32 * self.trained * (1 if self.numbers == F32 else 2)
        return self.steady() | {"gradients": self.window() + self.gradients() + joined + added}

    def update(self) -> dict[str, float]:
        """The optimizer step: the window's gradients and their mean, the new state beside the old."""
        trained = F32 * self.trained
        new = (
            1 + OPTIMIZER_STATE[self.spec.optimizer] if self.vectors else max(1.0, OPTIMIZER_STATE[self.spec.optimizer])
        )
        return self.steady() | {"gradients": 2 * trained, "working memory": trained * new}

    # What they consist of

    def steady(self) -> dict[str, float]:
        """What is there from the first step to the last."""
        trained = F32 * self.trained
        return {
            "base weights": self.weights,
            "trained weights": trained * (1 if self.numbers == F32 else 1.5),
            "optimizer": trained * OPTIMIZER_STATE[self.spec.optimizer],
            "gradients": self.window(),
        }

    def window(self) -> float:
        """Gradients of the micro-batches before, where a window has several."""
        return F32 * self.trained if self.spec.grad_accumulation_steps > 1 else 0.0

    def gradients(self) -> float:
        """Of one micro-batch."""
        return self.numbers * self.trained

    @property
    def vectors(self) -> bool:
        """Whether adapters are joined into vectors."""
        return self.spec.optimizer in ELEMENTWISE and self.spec.fine_tune_type == "lora"

    @property
    def weights(self) -> float:
        quantized = weight_bytes(self.spec, self.shape, dequantized=self.dequantized)
        if not self.kept_whole:
            return quantized
        embeddings = self.shape.vocabulary * self.shape.hidden
        return quantized + (self.numbers - quantized / self.shape.parameters) * (self.shape.parameters - embeddings)

    @property
    def trained(self) -> float:
        """Numbers."""
        return trained_layers(self.spec, self.shape) * trained_parameters(self.spec, self.shape)

    @property
    def numbers(self) -> int:
        """Bytes of a number of an activation."""
        return F32 if self.dequantized else self.shape.stored

    def kept(self) -> float:
        """Activations that wait for the backward pass."""
        layers = trained_layers(self.spec, self.shape)
        again = math.ceil(self.batch.recompute * layers)
        inputs = self.numbers * self.batch.positions * self.shape.hidden
        return again * inputs + (layers - again) * self.kept_by_layer()

    def kept_by_layer(self) -> float:
        """Activations that one layer keeps: its own, and the inputs of the matrices that are trained or adapted."""
        kept = self.size(self.backend.kept)
        layers, positions = adapted(self.spec, self.shape), self.batch.positions
        if self.spec.fine_tune_type == "full":
            return kept + self.numbers * positions * _inputs(layers)
        rank = self.spec.lora_parameters.rank
        kept += self.numbers * positions * rank * sum(linear.used for linear in layers)
        if self.spec.lora_parameters.dropout:  # each adapter drops other elements, and keeps which
            kept += (self.numbers + 1) * positions * sum(linear.inputs * linear.used for linear in layers)
        else:
            kept += self.numbers * positions * _inputs(self.read(layers))
        if self.spec.fine_tune_type == "dora":  # the adapted matrix, for the gradient of its norm
            kept += F32 * sum(linear.weights for linear in layers)
        return kept

    def read(self, linears: tuple[Linear, ...]) -> tuple[Linear, ...]:
        """Those whose input is kept for the gradient of their adapter: a GPU makes that of `down_proj` again."""
        again = self.backend.name != "cpu" and self.spec.fine_tune_type == "lora"
        return tuple(linear for linear in linears if not (again and linear.name == "mlp.down_proj"))

    def output_matrix(self) -> float:
        """An output layer of its own in the activations' type, where matrices are dequantized for their product."""
        if self.dequantized or self.kept_whole or self.backend.name == "cpu" or self.shape.tied:
            return 0.0
        whole = self.numbers * self.shape.vocabulary * self.shape.hidden
        return whole / math.ceil(whole / BLOCK_BYTES) if self.batch.recompute else whole

    def matrix(self) -> float:
        """The largest matrix of a layer in the activations' type, where matrices are dequantized for their product."""
        if self.dequantized or self.kept_whole or self.backend.name == "cpu":
            return 0.0
        return self.numbers * max(linear.inputs * linear.outputs for linear in self.shape.linears)

    def logits(self) -> float:
        """Logits of the targets, chunk by chunk; the last chunk may be a part of one."""
        chunk = max(1, LOGITS_BYTES // (F32 * self.shape.vocabulary))
        rows = min(self.batch.targets, self.backend.chunks * chunk)
        return self.backend.logits * F32 * rows * self.shape.vocabulary

    def size(self, tensors: Tensors) -> float:
        shape, batch = self.shape, self.batch
        numbers = (
            tensors.hidden * shape.hidden
            + tensors.query * shape.heads * shape.head
            + tensors.key * shape.kv_heads * shape.head
            + tensors.scores * shape.heads * batch.width
        )
        chunked = self.backend.name != "cpu" and batch.recompute >= 1 and batch.positions > 2 * CHUNK
        at_once = CHUNK if chunked else batch.positions
        return self.numbers * (batch.positions * numbers + at_once * tensors.mlp * shape.mlp)


def _inputs(linears: tuple[Linear, ...]) -> int:
    """Width of the inputs of linear layers; those that read the same one share it."""
    shared: dict[str, int] = {}
    for linear in linears:
        reads = "o" if "o_proj" in linear.name else "down" if "down_proj" in linear.name else linear.name.split(".")[0]
        shared[reads] = linear.inputs * (linear.used if reads == "down" else 1)
    return sum(shared.values())
