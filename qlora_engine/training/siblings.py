"""Low-rank layers that read the same input, as one: a layer of attention asks for three, a gated part for two.

Where rows are few a GPU waits for its kernels to be started rather than for their results, and three products of one
input, forward and backward, are twice as many kernels as one.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import mlx.core as mx
from mlx import nn

from qlora_engine.training.adapter_products import Adapter, InBlocks, Products
from qlora_engine.training.cuda import KINDS
from qlora_engine.training.frozen import FrozenLinear, forward
from qlora_engine.training.lowrank import LowRank, adapted

ROUNDS = 3
WORTH = 0.97  # of the time apart


class Siblings:
    """Layers that are called one after the other with one input, computed when the first of them is.

    Their frozen matrices are one matrix, of which the layers' own are parts, without a copy, and their adapters are one
    of all their ranks. One layer by itself is a sibling of none, whose adapter kernels of our own compute.

    Args:
        members: low-rank layers of one rank, whose frozen layers are of one kind.

    Attributes:
        how: their adapter is computed.
    """

    how: Products

    def __init__(self, members: Sequence[LowRank]) -> None:
        self.members = tuple(members)
        self._layer = _stacked([member.linear for member in members]) if len(members) > 1 else members[0].linear
        self.widths = [member.linear.weight.shape[0] for member in members]
        self.how = self.in_blocks = InBlocks(self.widths)
        self._placed: tuple[mx.array, mx.array] | None = None
        self._input: mx.array | None = None
        self._waiting: dict[int, mx.array] = {}

    def output(self, member: LowRank, x: mx.array) -> mx.array:
        """What one of the layers maps x to, (..., D) to (..., E)."""
        if self._input is not x:
            outputs = mx.split(self.joint(x), list(itertools.accumulate(self.widths))[:-1], axis=-1)
            self._input, self._waiting = x, dict(zip(map(id, self.members), outputs, strict=True))
        y = self._waiting.pop(id(member))
        if not self._waiting:
            self._input = None
        return y

    def join(self) -> None:
        """Have the layers compute as one."""
        for member in self.members:
            member.siblings = self

    def part(self) -> None:
        """Have each layer compute by itself again."""
        for member in self.members:
            member.siblings = None

    def joint(self, x: mx.array) -> mx.array:
        """What all of them map x to, side by side in the order of the members."""
        return adapted(self._layer, x, self.adapter(x.dtype))

    def adapter(self, kind: mx.Dtype) -> Adapter:
        """That of all their ranks, for inputs of that type."""
        a, b = self._placed or self.how.laid([member.upright(kind) for member in self.members])
        if self.how is self.in_blocks or (a.dtype == kind and kind in self._kinds):
            return Adapter(self.how, a, b)
        return Adapter(self.in_blocks, *self.in_blocks.laid(self.how.apart(a.astype(kind), b.astype(kind))))

    @cached_property
    def _kinds(self) -> list[mx.Dtype]:
        """Types that kernels of our own can take, whose numbers the frozen layer maps to some of the same type."""
        width = self.members[0].lora_a.shape[0]
        return [kind for kind in KINDS if forward(self._layer, mx.zeros((1, width), kind)).dtype == kind]

    def place(self, a: mx.array, b: mx.array) -> None:
        """Compute with these for the members' until they are displaced."""
        self._placed = (a, b)

    def displace(self) -> None:
        """Compute with the members' own again."""
        self._placed = None


def groups_of(model: nn.Module) -> list[Siblings]:
    """Those that a model's layers compute with, each once."""
    found = [layer.siblings for _, layer in model.named_modules() if isinstance(layer, LowRank)]
    return list({id(group): group for group in found if isinstance(group, Siblings)}.values())


def bring_together(model: nn.Module) -> list[Siblings]:
    """Have the low-rank layers that read the same input compute as one.

    Which they are shows when the model runs: those that are called in a row with one array.
    """
    groups = [list(group) for _, group in itertools.groupby(_calls(model), key=lambda call: id(call[1]))]
    calls = [id(layer) for group in groups for layer, _ in group]
    found = []
    for group in groups:
        members = [layer for layer, _ in group]
        if len(members) > 1 and _alike(members) and all(calls.count(id(member)) == 1 for member in members):
            found.append(Siblings(members))
            found[-1].join()
    return found


def measure(groups: Sequence[Siblings], rows: int, kind: mx.Dtype) -> tuple[float, float]:
    """Seconds of all the layers forward and backward, apart and together. They are left together.

    Args:
        rows: positions of a usual micro-batch.
        kind: type of activations.
    """
    for group in groups:
        group.part()
    apart = _seconds(groups, rows, kind)
    for group in groups:
        group.join()
        adapter = group.adapter(kind)
        mx.eval(adapter.a, adapter.b)
        group.place(adapter.a, adapter.b)
    together = _seconds(groups, rows, kind)
    for group in groups:
        group.displace()
    return apart, together


def faster(apart: float, together: float) -> bool:
    """Whether being together is worth it: it takes memory."""
    return together < WORTH * apart


def _seconds(groups: Sequence[Siblings], rows: int, kind: mx.Dtype) -> float:
    """The best of some rounds after one that is not counted."""
    widths = [group.members[0].lora_a.shape[0] for group in groups]
    inputs = {width: mx.ones((rows, width), kind) for width in set(widths)}

    def all_of_them(inputs: dict[int, mx.array]) -> list[mx.array]:
        made: list[mx.array] = []
        for group, width in zip(groups, widths, strict=True):
            made += _forward_and_back(group.members, inputs[width])
        return made

    compiled = mx.compile(all_of_them)
    best = float("inf")
    for number in range(1 + ROUNDS):
        started = time.perf_counter()
        mx.eval(compiled(inputs))
        if number:
            best = min(best, time.perf_counter() - started)
    return round(best, 7)


def _forward_and_back(members: Sequence[LowRank], x: mx.array) -> list[mx.array]:
    """The gradient of x; it waits for those of the adapters."""
    ones = [mx.ones((x.shape[0], member.lora_b.shape[1]), x.dtype) for member in members]
    _, of_x = mx.vjp(lambda x: [member(x) for member in members], [x], ones)
    return of_x


def _calls(model: nn.Module) -> list[tuple[LowRank, mx.array]]:
    """Which low-rank layer is called with what, in the order of the calls. Nothing is computed."""
    calls: list[tuple[LowRank, mx.array]] = []
    training = model.training
    model.eval()
    with LowRank.watched(lambda layer, x: calls.append((layer, x))):
        model(mx.zeros((1, 2), mx.int32))
    model.train(training)
    return calls


def _alike(members: Sequence[LowRank]) -> bool:
    """Whether they can be one layer."""
    return len({_kind(member) for member in members}) == 1 and not any(member.has_dropout for member in members)


def _kind(member: LowRank) -> tuple[Any, ...]:
    layer: Any = member.linear
    quantization = (layer.bits, layer.group_size, layer.mode, layer.ways) if isinstance(layer, FrozenLinear) else ()
    return (member.lora_a.shape, type(layer), layer.weight.dtype, layer.weight.shape[1], tuple(layer), quantization)


def _stacked(layers: Sequence[nn.Linear | FrozenLinear]) -> nn.Linear | FrozenLinear:
    """One layer of all outputs. The arrays of each become parts of its arrays."""
    first: Any = layers[0]
    made: Any
    if isinstance(first, FrozenLinear):
        made = FrozenLinear(64, 32, bias="bias" in first)
        made.bits, made.group_size, made.mode, made.ways = first.bits, first.group_size, first.mode, first.ways
    else:
        made = nn.Linear(1, 1, bias="bias" in first)
    for name in first:
        made[name] = mx.concatenate([layer[name] for layer in layers])
        mx.eval(made[name])
        start = 0
        for layer in layers:
            count = layer[name].shape[0]
            layer[name] = made[name][start : start + count]
            mx.eval(layer[name])
            start += count
    made.freeze()
    result: nn.Linear | FrozenLinear = made
    return result
