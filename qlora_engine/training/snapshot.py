"""What a checkpoint holds, at one moment: kept as it was while training goes on, and written without MLX."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx
import numpy as np

from qlora_engine.training.device import on_cuda


class Snapshot:
    """Arrays that nothing changes any more.

    MLX's CUDA backend moves an array to the host, page by page, when the host reads it, and back when the GPU does:
    0.2 s for the 0.5 GB of a 7B model's adapters and optimizer on an H200, and the next step waits for what it reads.
    So there the GPU makes a copy first, which takes it a millisecond, and does not read it again; another thread has
    the pages moved. Elsewhere the host copies what it can read as it is.

    Args:
        arrays: few and long.
        apart: what is wanted of them, by name.
    """

    def __init__(
        self, arrays: Mapping[str, mx.array], apart: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
    ) -> None:
        self._arrays, self._apart = dict(arrays), apart
        self.copied = False  # by the GPU: it need not be read at once

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(array.nbytes for array in self._arrays.values())

    def copy_if_moved(self) -> None:
        """Have the GPU begin with a copy, where one is needed. It takes as much memory again."""
        if on_cuda():
            # Not + 0, which makes 0 of -0.
            self._arrays = {name: array * mx.array(1, array.dtype) for name, array in self._arrays.items()}
            self.copied = True
            mx.async_eval(list(self._arrays.values()))

    def on_host(self) -> dict[str, np.ndarray]:
        """Wait until it is computed; what any thread may read while this object is there. To be called once."""
        mx.eval(list(self._arrays.values()))
        if self.copied:
            return self._apart({name: np.asarray(array) for name, array in self._arrays.items()})
        copies = {name: np.array(array) for name, array in self._arrays.items()}
        self._arrays = {}  # held while they are written, they would add to what the next windows need
        return self._apart(copies)
