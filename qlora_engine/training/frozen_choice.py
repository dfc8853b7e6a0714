"""Which product with the frozen matrices is fastest here, on a job's own shapes: measured once, then remembered."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
from mlx import nn

from qlora_engine.training import unpack
from qlora_engine.training.frozen import FrozenLinear, Ways, dequantized, keep_dequantized, quantized_layers, use
from qlora_engine.training.measured import Measured

IN_A_ROW = 4  # products that are timed together, so that starting them does not count
ROUNDS = 3
# What measuring may take must not be what a job takes most.
MOST_ROWS = 4096  # more do not make a product faster
MOST_BYTES = 256 << 20  # of results and dequantized matrices at once, but for one product with one matrix
WORTH = 0.97  # of the time: what keeping dequantized weights must undercut for the memory that it takes


@dataclass(frozen=True)
class Shape:
    """A kind of quantized matrix.

    Attributes:
        outputs, inputs: E and D.
        bits, group, mode: of its quantization.
    """

    outputs: int
    inputs: int
    bits: int
    group: int
    mode: str

    @classmethod
    def of(cls, layer: nn.QuantizedLinear) -> Shape:
        """The shape of a layer."""
        outputs, packed = layer.weight.shape
        return cls(outputs, packed * 32 // layer.bits, layer.bits, layer.group_size, layer.mode)

    @property
    def weights(self) -> int:
        """How many numbers the matrix has."""
        return self.outputs * self.inputs


@dataclass(frozen=True)
class Timing:
    """Seconds of one product with a matrix of a shape: forward and backward, in each way."""

    quantized: tuple[float, float]
    dequantized: tuple[float, float]
    kept: tuple[float, float]

    @property
    def ways(self) -> Ways:
        """The faster way in each direction."""
        faster = [
            "quantized" if q <= d else "dequantized" for q, d in zip(self.quantized, self.dequantized, strict=True)
        ]
        return Ways(*faster)  # type: ignore[arg-type]  # the list holds the two words

    @property
    def best(self) -> float:
        """Seconds forward and backward in those ways."""
        return min(self.quantized[0], self.dequantized[0]) + min(self.quantized[1], self.dequantized[1])


@dataclass(frozen=True)
class Choice:
    """What a run does with its frozen matrices.

    Attributes:
        kept: dequantized once, for the whole run.
        ways: otherwise, by shape in the order of the model.
    """

    kept: bool
    ways: tuple[tuple[Shape, Ways], ...]

    def as_json(self) -> dict[str, Any]:
        """For the run folder."""
        return {"kept": self.kept, "ways": [[asdict(shape), asdict(ways)] for shape, ways in self.ways]}

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Choice:
        """From `as_json`."""
        return cls(value["kept"], tuple((Shape(**shape), Ways(**ways)) for shape, ways in value["ways"]))


def measure(
    model: nn.Module,
    rows: int,
    kind: mx.Dtype,
    *,
    about: Mapping[str, Any],
    known: Measured,
    beat: Callable[[], None] = lambda: None,
) -> dict[Shape, Timing]:
    """The times of every shape of quantized matrix of a model.

    Args:
        rows: positions of a usual micro-batch.
        kind: type of activations.
        about: the device and the versions, which times depend on.
        known: asked first, and told what is measured.
        beat: called after each shape.
    """
    rows = min(MOST_ROWS, max(32, 1 << (rows - 1).bit_length()))  # so that like jobs ask the same
    samples = {Shape.of(layer): layer for layer in quantized_layers(model).values()}
    timings = {}
    for shape, layer in samples.items():
        question = {"what": "frozen product", "rows": rows, "kind": str(kind), **asdict(shape), **about}
        answer = known.answer(question)
        if answer is None:
            answer = asdict(_timed(layer, _measurable(rows, shape, kind), kind))
            mx.clear_cache()
            known.note(question, answer)
        timings[shape] = Timing(**{name: tuple(seconds) for name, seconds in answer.items()})
        beat()
    return timings


def choose(model: nn.Module, timings: Mapping[Shape, Timing], kind: mx.Dtype, room: float) -> Choice:
    """The fastest that fits.

    Args:
        kind: type of activations.
        room: bytes that keeping dequantized weights may take more than the quantized ones.
    """
    counts = Counter(Shape.of(layer) for layer in quantized_layers(model).values())
    best = sum(count * timings[shape].best for shape, count in counts.items())
    kept = sum(count * sum(timings[shape].kept) for shape, count in counts.items())
    more = sum(count * shape.weights * (kind.size - shape.bits / 8) for shape, count in counts.items())
    ways = tuple((shape, timing.ways) for shape, timing in timings.items())
    return Choice(kept < WORTH * best and more <= room, ways)


def apply(model: nn.Module, choice: Choice, kind: mx.Dtype) -> None:
    """Have the model's quantized layers multiply as chosen. Layers of a shape that was not measured stay."""
    unpack.works()  # it computes something, which is not for the middle of a step that is being compiled
    if choice.kept:
        keep_dequantized(model, kind)
        return
    ways = dict(choice.ways)
    for layer in quantized_layers(model).values():
        if (chosen := ways.get(Shape.of(layer), Ways())) != Ways():
            use(layer, chosen)


def _measurable(rows: int, shape: Shape, kind: mx.Dtype) -> int:
    """Of these rows as many as have a result of no more than `MOST_BYTES`; an output layer gets chunks of them too."""
    return min(rows, max(32, MOST_BYTES // (kind.size * max(shape.outputs, shape.inputs))))


def _timed(layer: nn.QuantizedLinear, rows: int, kind: mx.Dtype) -> Timing:
    """Measure one layer, without its bias."""
    shape = Shape.of(layer)
    bytes_of_one = kind.size * (rows * max(shape.outputs, shape.inputs) + shape.weights)
    count = max(1, min(IN_A_ROW, MOST_BYTES // bytes_of_one))
    x, cotangent = mx.zeros((rows, shape.inputs), kind), mx.zeros((rows, shape.outputs), kind)
    frozen = FrozenLinear(64, 32, bias=False)
    frozen.update({name: layer[name] for name in ("weight", "scales", "biases") if name in layer})
    frozen.group_size, frozen.bits, frozen.mode = layer.group_size, layer.bits, layer.mode
    found = {}
    for way in ("quantized", "dequantized"):
        frozen.ways = Ways(way, way)
        found[way] = (
            _seconds(lambda: frozen.forward(x), count),
            _seconds(lambda: frozen.backward(cotangent), count),
        )
    weight = dequantized(layer, kind).weight
    kept = (_seconds(lambda: x @ weight.T, count), _seconds(lambda: cotangent @ weight, count))
    return Timing(found["quantized"], found["dequantized"], kept)


def _seconds(product: Callable[[], mx.array], count: int) -> float:
    """Of one product, the best of some rounds after one that is not counted.

    Args:
        count: products in a round.
    """
    best = float("inf")
    for number in range(1 + ROUNDS):
        started = time.perf_counter()
        mx.eval([product() for _ in range(count)])
        if number:
            best = min(best, time.perf_counter() - started)
    return round(best / count, 7)
