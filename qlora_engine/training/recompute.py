"""Gradient checkpointing: keep a layer's input alone and compute the layer again in the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from qlora_engine.training.gated import Gated


def checkpoint_layers(layers: Sequence[nn.Module]) -> None:
    """Checkpoint these layers, by giving each object a subclass of its class.

    mlx_lm replaces the class's `__call__`, which reaches every model of the process and nests when it is done
    twice. Here names, parameters and other models stay as they are, and doing it twice is doing it once.
    """
    for layer in layers:
        if not isinstance(layer, _Recomputed):
            layer.__class__ = type(f"Recomputed{type(layer).__name__}", (_Recomputed, type(layer)), {})
        for _, module in layer.named_modules():
            if isinstance(module, Gated):
                module.recomputed = True


def recomputes(model: nn.Module) -> bool:
    """Whether any layer of a model is computed again."""
    return any(isinstance(module, _Recomputed) for _, module in model.named_modules())


class _Recomputed(nn.Module):
    """Put before a layer's class: the same layer, recomputed when its gradient is needed."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = super().__call__

        # Parameters are arguments, or their gradient would not pass through the recomputation.
        def layer(parameters: dict[str, Any], *inner: Any) -> Any:
            self.update(parameters)
            return forward(*inner, **kwargs)

        return mx.checkpoint(layer)(self.trainable_parameters(), *args)  # type: ignore[no-untyped-call]  # mlx has no types here
