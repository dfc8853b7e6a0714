"""A model's output layer, applied to the rows that have a target and to no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from functools import partial
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.tuner.dora import DoRAEmbedding
from mlx_lm.tuner.lora import LoRAEmbedding

from qlora_engine.training.block_loss import Block, block_loss, blocks_of
from qlora_engine.training.frozen import DEQUANTIZED, FrozenLinear
from qlora_engine.training.loss import projected_loss, summed_loss, trained_loss
from qlora_engine.training.recompute import recomputes
from qlora_engine.training.segments import Segments
from qlora_engine.training.tree import flat

Embedding = nn.Embedding | nn.QuantizedEmbedding | LoRAEmbedding | DoRAEmbedding


class Head:
    """Computes a model's loss without the logits that no target needs.

    It gives the output layer of this one model a subclass that can pass its input through. Which layer that is
    shows when the model runs: the one whose result is the model's. A model that does something to its logits
    afterwards (caps or scales them) gets them for the wanted rows alone; one whose output layer is not found
    computes all logits, and the wanted ones are taken.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._mode = _Mode.PLAIN
        self._seen: list[_Seen] = []
        self._rows: mx.array | None = None
        self._project: Callable[[mx.array], mx.array] | None = None
        found = self._find()
        self._width = found.output.shape[-1] if found else 0
        self._is_last = found is not None and found.is_result
        self._layer = found.layer if found else None
        self._blocks = self._blocks_of(self._layer)

    def loss(
        self, inputs: mx.array, rows: mx.array, targets: mx.array, count: mx.array, segments: mx.array | None = None
    ) -> mx.array:
        """Summed next-token loss over the targets, nats, float32 ().

        Args:
            inputs: int32 (B, T).
            rows: int32 (N,), positions in the flattened inputs.
            targets: int32 (N,), what each of them should predict.
            count: int32 (), how many of the rows count; the rest is filling.
            segments: int32 (B, T), the document of each position, where rows hold several.
        """
        valid = mx.arange(rows.shape[0]) < count
        caches = None if segments is None else Segments.of_layers(self._model, segments)
        if self._layer is None:
            logits = self._run(inputs, caches)
            return summed_loss(logits.reshape(-1, logits.shape[-1])[rows], targets, valid)
        self._rows = rows
        if self._is_last and not flat(self._layer.trainable_parameters()):
            with self._as(_Mode.SKIP):
                hidden = self._run(inputs, caches)
            assert self._project is not None  # noqa: S101  # the layer was called: it was found by its being called
            if self._blocks and self._model.training:
                return block_loss(self._blocks, hidden[0], targets, valid)
            frozen = isinstance(self._layer, FrozenLinear)
            project = self._layer.for_several(hidden) if frozen else self._project
            of_rows = trained_loss if self._model.training else projected_loss
            return of_rows(project, hidden[0], targets, valid, self._width)
        with self._as(_Mode.ROWS):
            logits = self._run(inputs, caches)
        return summed_loss(logits[0], targets, valid)

    def called(self, layer: nn.Module, x: mx.array, project: Callable[[mx.array], mx.array]) -> mx.array:
        """What the output layer does with its input (B, T, D), in the mode of the moment."""
        match self._mode:
            case _Mode.PLAIN:
                return project(x)
            case _Mode.SEARCH:
                output = project(x)
                self._seen.append(_Seen(layer, output))
                return output
        assert self._rows is not None  # noqa: S101
        wanted = x.reshape(-1, x.shape[-1])[self._rows]
        if self._mode is _Mode.ROWS:
            return project(wanted[None])
        self._project = project
        return wanted[None]

    def _run(self, inputs: mx.array, caches: list[Segments] | None) -> mx.array:
        result: mx.array = self._model(inputs) if caches is None else self._model(inputs, cache=caches)
        return result

    def _blocks_of(self, layer: nn.Module | None) -> list[Block]:
        """The output layer in blocks, where it is dequantized for its products and memory is short; or none."""
        if not isinstance(layer, FrozenLinear) or layer.ways != DEQUANTIZED or not recomputes(self._model):
            return []
        blocks = blocks_of(layer, layer.scales.dtype)
        return blocks if len(blocks) > 1 else []

    def _find(self) -> _Seen | None:
        """Tap every layer that might be it, run the model (lazily: nothing is computed), untap all but the one."""
        candidates = [
            module for name, module in self._model.named_modules() if isinstance(module, Embedding) or "lm_head" in name
        ]
        classes = [type(candidate) for candidate in candidates]
        for candidate in candidates:
            _tap(candidate, self)
        with self._as(_Mode.SEARCH):
            result = self._model(mx.zeros((1, 2), mx.int32))
        # An adapter calls the layer that it wraps: of the two, the adapter is the output layer.
        wrapped = {id(inner) for found in self._seen for inner in _inside(found.layer)}
        seen = [f for f in self._seen if f.output.shape == result.shape and id(f.layer) not in wrapped]
        self._seen = []
        found = seen[0] if len(seen) == 1 else None
        for candidate, kind in zip(candidates, classes, strict=True):
            if found is None or candidate is not found.layer:
                candidate.__class__ = kind
        if found is not None:
            found.is_result = found.output is result
        return found

    @contextmanager
    def _as(self, mode: _Mode) -> Iterator[None]:
        self._mode = mode
        try:
            yield
        finally:
            self._mode = _Mode.PLAIN


class _Mode(Enum):
    PLAIN = auto()  # as if untouched
    SEARCH = auto()
    SKIP = auto()  # pass the wanted rows of the input through
    ROWS = auto()  # project the wanted rows


class _Seen:
    def __init__(self, layer: nn.Module, output: mx.array) -> None:
        self.layer, self.output, self.is_result = layer, output, False


def _inside(layer: nn.Module) -> list[nn.Module]:
    return [module for _, module in layer.named_modules() if module is not layer]


def _tap(layer: nn.Module, head: Head) -> None:
    """Give the layer a subclass of its class, so that a second head over the same model can do so again."""
    kind: Any = type(layer)
    method = "as_linear" if isinstance(layer, Embedding) else "__call__"
    plain = getattr(kind, method)

    def tapped(self: nn.Module, x: mx.array) -> mx.array:
        return head.called(self, x, partial(plain, self))

    layer.__class__ = type(f"Tapped{kind.__name__}", (kind,), {method: tapped})
