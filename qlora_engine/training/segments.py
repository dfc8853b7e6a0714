"""Keeping documents of one row apart: attention that ends at a document's start, and whether a model heeds it."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from mlx import nn

from qlora_engine.training.device import on_cuda
from qlora_engine.training.model import activation_type

ABSOLUTE = frozenset({"gpt2", "gpt_bigcode", "ministral3"})  # models where it counts how far from the row's start
TOLERANCE = 0.05  # of the spread of the logits; bfloat16 alone gives 0.01
HIDDEN = -3e4  # added to a score, which leaves nothing of it; infinity is not safe in every kernel
PROBE = (11, 14)  # tokens of two documents, in either order


class Segments:
    """A cache to a model, which keeps nothing and gives the mask of the row's documents.

    mlx_lm's models ask their cache for the mask, for the position to count from and for the earlier keys. Rotary
    positions are relative, so those of a document may start anywhere.

    Args:
        numbers: int32 (B, T), the document of each position.
        added: the type of a mask that is added to the scores, or None for one of truth values.
    """

    offset = 0

    def __init__(self, numbers: mx.array, added: mx.Dtype | None = None) -> None:
        self._numbers, self._added = numbers, added

    def make_mask(self, width: int, *, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """(B, 1, T, T): where a position (row) sees another (column), True, or 0 and far less elsewhere.

        Asked for by the model.
        """
        del return_array  # it is always an array
        at = mx.arange(width)
        seen = at[:, None] >= at
        if window_size is not None:
            seen = seen & (at[:, None] < at + window_size)
        same = self._numbers[:, :, None] == self._numbers[:, None, :]
        mask = (same & seen)[:, None]
        return mask if self._added is None else mx.where(mask, 0.0, HIDDEN).astype(self._added)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Only what is there now."""
        return keys, values

    @classmethod
    def of_layers(cls, model: nn.Module, numbers: mx.array) -> list[Segments]:
        """One for each layer of a model."""
        count = len(model.make_cache()) if hasattr(model, "make_cache") else len(model.layers)
        # On CUDA attention has a fused kernel with a mask that is added, in the type of the rest, and with no other.
        return [cls(numbers, activation_type(model) if on_cuda() else None)] * count


def why_not_joined(model: nn.Module, model_type: str | None, vocabulary: int) -> str | None:
    """Why documents cannot share a row of this model, or None: two of them give the same logits joined and alone.

    Convolution and state-space layers carry what they saw across a document's start, absolute positions shift.
    """
    if model_type in ABSOLUTE:
        return "its positions are absolute"
    tokens = mx.random.randint(0, vocabulary, (2, sum(PROBE)), key=mx.random.key(0))
    starts = PROBE  # of the second document in each row: a mask must be that of its own row
    numbers = mx.array([[1] * start + [2] * (sum(PROBE) - start) for start in starts])
    training = model.training
    model.eval()
    try:
        alone = mx.concatenate([model(tokens[row : row + 1, start:])[0] for row, start in enumerate(starts)])
        both = model(tokens, cache=Segments.of_layers(model, numbers))
        joined = mx.concatenate([both[row, start:] for row, start in enumerate(starts)]).astype(mx.float32)
        alone = alone.astype(mx.float32)
        off = np.asarray(mx.sqrt(mx.square(joined - alone).mean() / mx.maximum(alone.var(), 1e-12)))
    except Exception:  # noqa: BLE001  # a model may fail in any way on a cache of another kind than its own
        return "its layers do not take a row of several documents"
    finally:
        model.train(training)
    # A comparison with NaN is false, and what gives NaN is not to be relied on.
    return None if float(off) <= TOLERANCE else "its layers carry one document into the next"
