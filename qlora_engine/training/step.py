"""The training step: gradients of micro-batches summed over a window, then one guarded optimizer update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx import nn
from mlx.utils import tree_map, tree_map_with_path

from qlora_engine.training.dropout import DropoutKey
from qlora_engine.training.loss import token_loss
from qlora_engine.training.tree import Tree, flat

ADAPTER_LEAVES = ("lora_a", "lora_b", "m")


@dataclass(frozen=True)
class Update:
    """What an optimizer step did.

    Attributes:
        applied: False if the guard kept a non-finite loss or gradient, or an empty window, from the optimizer.
        loss: summed over the window's targets, nats.
        gradient_norm: of the mean gradient, before clipping.
        learning_rate: that was used.
    """

    applied: bool
    loss: float
    gradient_norm: float
    learning_rate: float


class TrainingStep:
    """Owns what training changes: the float32 master weights, the optimizer's state and the window's gradients.

    The masters are cast to the activations' type inside the differentiated function. A float32 LoRA matrix
    would promote every activation after it to float32; cast, it costs nothing and its gradient is float32 still.

    Args:
        model: with adapters; everything but its trainable parameters is frozen.
        optimizer: fresh.
        activations: the type to compute in.
        dropout: receives the key of every micro-batch.
        grad_clip: largest gradient norm, or None.
        compiled: let MLX compile the two functions, which fuses their small operations on a GPU.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        *,
        activations: mx.Dtype,
        dropout: DropoutKey,
        grad_clip: float | None,
        compiled: bool,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        trainable = model.trainable_parameters()
        self._types = tree_map_with_path(
            lambda path, p: activations if path.rsplit(".", 1)[-1] in ADAPTER_LEAVES else p.dtype, trainable
        )
        self.masters: Tree = tree_map(lambda p: p.astype(mx.float32), trainable)
        optimizer.init(self.masters)
        self._zeros: Tree = tree_map(mx.zeros_like, self.masters)
        self._gradients: Tree = self._zeros
        self._loss, self._count = mx.array(0.0), mx.array(0)
        mx.eval(self.masters, optimizer.state, self._zeros)
        self._accumulate = self._make_accumulate(dropout)
        self._update = self._make_update(grad_clip)
        if compiled:
            self._accumulate = mx.compile(self._accumulate)
            self._update = mx.compile(self._update, inputs=[optimizer.state], outputs=[optimizer.state])

    def micro_batch(self, tokens: mx.array, supervised: mx.array, key: mx.array) -> tuple[float, int]:
        """Add the gradients of one micro-batch to the window's.

        Args:
            tokens: int32 (B, T).
            supervised: bool (B, T).
            key: uint32 (2,), decides the dropout masks.

        Returns:
            The summed loss in nats and the number of targets.
        """
        self._gradients, loss, count = self._accumulate(self.masters, self._gradients, key, tokens, supervised)
        self._loss, self._count = self._loss + loss, self._count + count
        # Evaluated here, every micro-batch: a graph that is not evaluated grows until nothing moves any more.
        mx.eval(self._gradients, loss, count)
        return float(loss), int(count)

    def update(self) -> Update:
        """Apply the window's mean gradient, and start the next window."""
        self.masters, norm, applied = self._update(self.masters, self._gradients, self._loss, self._count)
        mx.eval(self.masters, self.optimizer.state, norm, applied)
        done = Update(bool(applied), float(self._loss), float(norm), float(self.optimizer.learning_rate))
        self.discard()
        return done

    def discard(self) -> None:
        """Forget the window's gradients."""
        self._gradients = self._zeros
        self._loss, self._count = mx.array(0.0), mx.array(0)

    def sync_model(self) -> nn.Module:
        """The model with the masters' current values, in the activations' type."""
        self.model.update(self._cast(self.masters))
        return self.model

    def state(self) -> dict[str, mx.array]:
        """Everything that a checkpoint must hold of it, by flat names."""
        masters = {f"masters.{name}": array for name, array in flat(self.masters).items()}
        state = {f"optimizer.{name}": array for name, array in flat(self.optimizer.state).items()}
        return masters | state

    def restore(self, arrays: dict[str, mx.array]) -> None:
        """Take back what `state` gave. Leaf by leaf into the live trees, which keeps empty containers.

        Raises:
            KeyError: an array is missing.
        """
        self.masters = tree_map_with_path(lambda path, _: arrays[f"masters.{path}"], self.masters)
        _restore_in_place(self.optimizer.state, arrays, "optimizer")
        mx.eval(self.masters, self.optimizer.state)

    def _cast(self, masters: Tree) -> Tree:
        return tree_map(lambda p, kind: p.astype(kind), masters, self._types)

    def _make_accumulate(self, dropout: DropoutKey) -> Callable[..., Any]:
        def loss(masters: Tree, key: mx.array, tokens: mx.array, supervised: mx.array) -> tuple[mx.array, mx.array]:
            self.model.update(self._cast(masters))
            dropout.key = key
            return token_loss(self.model, tokens, supervised)

        loss_and_gradients = mx.value_and_grad(loss)

        def accumulate(
            masters: Tree, gradients: Tree, key: mx.array, tokens: mx.array, supervised: mx.array
        ) -> tuple[Tree, mx.array, mx.array]:
            (total, count), new = loss_and_gradients(masters, key, tokens, supervised)
            return tree_map(mx.add, gradients, new), total, count

        return accumulate

    def _make_update(self, grad_clip: float | None) -> Callable[..., Any]:
        def update(masters: Tree, gradients: Tree, loss: mx.array, count: mx.array) -> tuple[Tree, mx.array, mx.array]:
            # Sums over sums: the gradient of one batch that holds the whole window.
            share = 1.0 / mx.maximum(count, 1).astype(mx.float32)
            mean = tree_map(lambda g: g * share, gradients)
            norm = mx.sqrt(mx.stack([mx.square(g).sum() for g in flat(mean).values()]).sum())
            if grad_clip is not None:
                shrink = mx.minimum(grad_clip / (norm + 1e-6), 1.0)
                mean = tree_map(lambda g: g * shrink, mean)
            applied = mx.isfinite(norm) & mx.isfinite(loss) & (count > 0)
            before = tree_map(lambda s: s, self.optimizer.state)
            after = self.optimizer.apply_gradients(mean, masters)

            # `where`, not a product with 0: 0 × NaN is NaN.
            def guard(new: mx.array, old: mx.array) -> mx.array:
                return mx.where(applied, new, old)

            _replace(self.optimizer.state, tree_map(guard, self.optimizer.state, before))
            return tree_map(guard, after, masters), norm, applied

        return update


def _replace(live: Tree, new: Tree) -> None:
    """Put the leaves of `new` into `live`, whose containers stay the same objects."""
    for key, value in live.items() if isinstance(live, dict) else enumerate(live):
        if isinstance(value, dict | list):
            _replace(value, new[key])
        else:
            live[key] = new[key]


def _restore_in_place(live: Tree, arrays: dict[str, mx.array], path: str) -> None:
    for key, value in list(live.items() if isinstance(live, dict) else enumerate(live)):
        if isinstance(value, dict | list):
            _restore_in_place(value, arrays, f"{path}.{key}")
        elif isinstance(value, mx.array):
            live[key] = arrays[f"{path}.{key}"]
