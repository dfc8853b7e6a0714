"""The training step: gradients of micro-batches summed over a window, then one guarded optimizer update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx import nn
from mlx.utils import tree_map, tree_map_with_path

from qlora_engine.training.dropout import DropoutKey
from qlora_engine.training.grouping import Grouping
from qlora_engine.training.head import Head
from qlora_engine.training.results import MicroBatch, StartedMicroBatch, StartedUpdate, Update
from qlora_engine.training.snapshot import Snapshot
from qlora_engine.training.targets import Targets
from qlora_engine.training.tree import Tree, flat
from qlora_engine.training.vectors import Group, Vectors

MAX_LOSS = 1e6
MASTERS, OPTIMIZER = "masters.", "optimizer."  # what the names of a checkpoint's arrays begin with

A = TypeVar("A", mx.array, np.ndarray)


class TrainingStep:
    """Owns what training changes: the float32 master weights, the optimizer's state and the window's gradients.

    The masters are cast to the activations' type before the differentiated function, and its gradients are float32
    from there on. A float32 LoRA matrix would promote every activation after it to float32; cast, it costs nothing.

    The guard sits in the computation: a micro-batch whose loss or gradient is not finite, or whose mean loss is over
    `max_loss`, adds nothing to the window, and an update that is not finite changes nothing.

    Args:
        model: with adapters; everything but its trainable parameters is frozen.
        optimizer: fresh.
        activations: the type to compute in.
        dropout: receives the key of every micro-batch.
        grad_clip: largest gradient norm, or None.
        max_loss: largest mean loss of a micro-batch, nats.
        lora_plus_ratio: learning rate of B matrices over that of the rest (LoRA+; Hayou et al. 2024), or None.
        compiled: let MLX compile the two functions, which fuses their small operations on a GPU.
        joining: gradients are joined by a kernel of our own, on CUDA.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        *,
        activations: mx.Dtype,
        dropout: DropoutKey,
        grad_clip: float | None = None,
        max_loss: float = MAX_LOSS,
        lora_plus_ratio: float | None = None,
        compiled: bool,
        joining: bool = False,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self._head = Head(model)
        self._grouping = Grouping(model, optimizer, activations, joining=joining)
        trainable = tree_map(lambda p: p.astype(mx.float32), model.trainable_parameters())
        self._masters = self._grouping.join(trainable)
        optimizer.init(self._masters)
        # One zero each, seen in the shape of its gradient: an empty window takes no memory.
        self._zeros: Vectors = tree_map(lambda p: mx.broadcast_to(mx.array(0.0), p.shape), self._masters)
        self.rate_factor = 1.0
        self._window: tuple[Vectors, mx.array] = (self._zeros, mx.array(0))
        mx.eval(self._masters, optimizer.state, self._zeros)
        self._accumulate = self._make_accumulate(dropout, max_loss)
        self._update = self._make_update(grad_clip, lora_plus_ratio or 1.0)
        self._compiled = compiled
        self._shapes: set[tuple[int, ...]] = set()
        if compiled:
            self._accumulate = mx.compile(self._accumulate)
            self._update = mx.compile(self._update, inputs=[optimizer.state], outputs=[optimizer.state])

    @property
    def masters(self) -> Tree:
        """The weights that are trained, float32, in the tree of the model's trainable parameters."""
        return self._grouping.tree(self._masters)

    @property
    def gradients(self) -> Tree:
        """Of the window so far, summed, in the same tree."""
        return self._grouping.tree(self._window[0])

    @property
    def shapes(self) -> int:
        """How many shapes of micro-batches there were; each is compiled once, if they are compiled at all."""
        return len(self._shapes)

    def compiles(self, targets: Targets) -> bool:
        """Whether a micro-batch of this shape will be compiled first."""
        return self._compiled and targets.shape not in self._shapes

    def micro_batch(self, targets: Targets, key: mx.array) -> MicroBatch:
        """Add the gradients of one micro-batch to the window's.

        Args:
            targets: the micro-batch.
            key: uint32 (2,), decides the dropout masks.
        """
        return self.start(targets, key).result()

    def start(self, targets: Targets, key: mx.array) -> StartedMicroBatch:
        """Begin with a micro-batch; its result must be waited for, but something else may be begun before that."""
        self._shapes.add(targets.shape)
        self._window, loss, norm, good = self._accumulate(self._masters, self._window, key, *targets.arrays())
        # Evaluated here, every micro-batch: a graph that is not evaluated grows until nothing moves any more.
        mx.async_eval(self._window, loss, norm, good)
        return StartedMicroBatch(targets, (loss, norm, good), self._window)

    def update(self) -> Update:
        """Apply the window's mean gradient, and begin the next window."""
        return self.start_update().result()

    def start_update(self) -> StartedUpdate:
        """The same without waiting for it."""
        factor = mx.array(self.rate_factor)
        self._masters, norm, applied = self._update(self._masters, *self._window, factor)
        count = self._window[1]
        rate = self.optimizer.learning_rate
        mx.async_eval(self._masters, self.optimizer.state, norm, applied, count, rate)
        self.discard()
        return StartedUpdate((norm, applied, count, rate), self.rate_factor)

    def discard(self) -> None:
        """Forget the window's gradients."""
        self._window = (self._zeros, mx.array(0))

    def sync_model(self) -> nn.Module:
        """The model with the masters' current values, in the activations' type."""
        self.model.update(self._grouping.cast(self._masters))
        return self.model

    def loss(self, targets: Targets) -> float:
        """Summed loss of a batch under the model as it is, without dropout if it is in evaluation, nats."""
        return float(self._head.loss(*targets.arrays()))

    def state(self) -> dict[str, mx.array]:
        """Everything that a checkpoint must hold of it, by flat names; `rate_factor` is the run's to keep."""
        return self._by_name(self._held(), Group.apart)

    def snapshot(self) -> Snapshot:
        """The same at this moment, to be read while training goes on."""
        return Snapshot(self._held(), lambda arrays: self._by_name(arrays, Group.apart_on_host))

    def restore(self, arrays: dict[str, mx.array]) -> None:
        """Take back what `state` gave. Leaf by leaf into the live trees, which keeps empty containers.

        Raises:
            KeyError: an array is missing.
        """
        masters = {path: arrays[f"{MASTERS}{path}"] for path in self._grouping.apart(self._masters)}
        restored = {}
        for name, array in flat(self.optimizer.state).items():
            group, slot = self._group_of(name, array)
            if group is None:
                restored[name] = arrays[f"{OPTIMIZER}{name}"]
            else:
                restored[name] = group.join(
                    {leaf.path: arrays[f"{OPTIMIZER}{leaf.path}.{slot}"] for leaf in group.leaves}
                )
        self._masters = self._grouping.join_flat(masters)
        _replace(self.optimizer.state, tree_map_with_path(lambda path, _: restored[path], self.optimizer.state))
        mx.eval(self._masters, self.optimizer.state)

    def _held(self) -> dict[str, mx.array]:
        """Masters and the optimizer's state as they are held, in vectors."""
        masters = {f"{MASTERS}{key}": vector for key, vector in self._masters.items()}
        return masters | {f"{OPTIMIZER}{name}": array for name, array in flat(self.optimizer.state).items()}

    def _by_name(self, held: Mapping[str, A], apart: Callable[[Group, A], dict[str, A]]) -> dict[str, A]:
        """The arrays of what `_held` gives, in MLX or on the host, by the names that a checkpoint has for them."""
        named: dict[str, A] = {}
        for name, array in held.items():
            if name.startswith(MASTERS):
                group, prefix, suffix = self._grouping.groups[name.removeprefix(MASTERS)], MASTERS, ""
            else:
                of_vector, slot = self._group_of(name.removeprefix(OPTIMIZER), array)
                if of_vector is None:
                    named[name] = array
                    continue
                group, prefix, suffix = of_vector, OPTIMIZER, f".{slot}"
            named |= {f"{prefix}{path}{suffix}": part for path, part in apart(group, array).items()}
        return named

    def _group_of(self, name: str, array: mx.array | np.ndarray) -> tuple[Group | None, str]:
        """The group of arrays whose vector an array of the optimizer's state is like, and what it is of them."""
        key, _, slot = name.rpartition(".")
        group = self._grouping.groups.get(key)
        return (group if group and group.joined and array.shape == (group.length,) else None), slot

    def _make_accumulate(self, dropout: DropoutKey, max_loss: float) -> Callable[..., Any]:
        def loss(pieces: dict[str, mx.array], key: mx.array, *targets: mx.array) -> mx.array:
            self._grouping.place(pieces)
            dropout.key = key
            return self._head.loss(*targets)

        loss_and_gradients = mx.value_and_grad(loss)

        def accumulate(
            masters: Vectors, window: tuple[Vectors, mx.array], key: mx.array, *targets: mx.array
        ) -> tuple[tuple[Vectors, mx.array], mx.array, mx.array, mx.array]:
            gradients, sum_of_counts = window
            count = targets[3]
            with self._grouping.placing():
                total, of_pieces = loss_and_gradients(self._grouping.pieces(masters), key, *targets)
            new = self._grouping.gradients(of_pieces)
            at_least_one = mx.maximum(count, 1).astype(mx.float32)
            norm = _norm(new) / at_least_one
            good = mx.isfinite(total) & (total <= max_loss * at_least_one) & mx.isfinite(norm)
            # `where`, not a product with 0: 0 × NaN is NaN.
            added = tree_map(lambda old, g: mx.where(good, old + g, old), gradients, new)
            return (added, sum_of_counts + mx.where(good, count, 0)), total, norm, good

        return accumulate

    def _make_update(self, grad_clip: float | None, ratio: float) -> Callable[..., Any]:
        def update(
            masters: Vectors, gradients: Vectors, count: mx.array, factor: mx.array
        ) -> tuple[Vectors, mx.array, mx.array]:
            # Sums over sums: the gradient of one batch that holds the whole window.
            share = 1.0 / mx.maximum(count, 1).astype(mx.float32)
            mean = tree_map(lambda g: g * share, gradients)
            norm = _norm(mean)
            if grad_clip is not None:
                shrink = mx.minimum(grad_clip / (norm + 1e-6), 1.0)
                mean = tree_map(lambda g: g * shrink, mean)
            before = tree_map(lambda s: s, self.optimizer.state)
            after = self.optimizer.apply_gradients(mean, masters)
            groups = self._grouping.groups
            after = {
                key: _scaled(new, masters[key], factor, ratio if groups[key].is_b else 1.0)
                for key, new in after.items()
            }
            applied = mx.isfinite(norm) & (count > 0) & mx.isfinite(_norm(after))

            def guard(new: mx.array, old: mx.array) -> mx.array:
                return mx.where(applied, new, old)

            _replace(self.optimizer.state, tree_map(guard, self.optimizer.state, before))
            return tree_map(guard, after, masters), norm, applied

        return update


def _norm(tree: Tree) -> mx.array:
    return mx.sqrt(mx.stack([mx.square(array).sum() for array in flat(tree).values()]).sum())


def _scaled(new: mx.array, old: mx.array, factor: mx.array, ratio: float) -> mx.array:
    """The update as if the learning rate were that many times as large: every optimizer's update is linear in it."""
    if math.isclose(ratio, 1.0):
        return mx.where(factor == 1.0, new, old + factor * (new - old))
    return old + factor * ratio * (new - old)


def _replace(live: Tree, new: Tree) -> None:
    """Put the leaves of `new` into `live`, whose containers stay the same objects."""
    for key, value in live.items() if isinstance(live, dict) else enumerate(live):
        if isinstance(value, dict | list):
            _replace(value, new[key])
        else:
            live[key] = new[key]
