"""What training changes, in few long vectors: an optimizer step of a few kernels where there were thousands."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx import nn
from mlx.utils import tree_map, tree_map_with_path

from qlora_engine.training.device import on_cpu
from qlora_engine.training.lowrank import LowRank
from qlora_engine.training.tree import Tree, flat

ADAPTER_LEAVES = ("lora_a", "lora_b", "m")
# What these do to a number depends on that number alone; Muon and Adafactor look at whole matrices.
ELEMENTWISE = (optim.Adam, optim.AdamW, optim.SGD)
# Numbers in a vector on the CPU, where MLX fuses nothing and begins with ten operations before the first has ended:
# the optimizer would hold as many vectors.
LONGEST = 1 << 20
ALIGNED = 64  # each matrix begins at a multiple of so many numbers: a GPU's products want aligned addresses

Vectors = dict[str, mx.array]


@dataclass(frozen=True)
class Leaf:
    """One trained array, and where it lies in its vector."""

    path: str
    shape: tuple[int, ...]
    start: int

    @property
    def end(self) -> int:
        """Of its numbers, without those that align the next."""
        return self.start + math.prod(self.shape)


@dataclass(frozen=True)
class Group:
    """Arrays that are treated alike, and share a vector if they are joined.

    Attributes:
        length: of the vector.
        kind: the type to compute in.
        factor: what the computation multiplies them by.
        is_b: they are the B matrices of adapters.
        joined: they share a vector; otherwise the one leaf keeps its shape.
    """

    leaves: tuple[Leaf, ...]
    length: int
    kind: mx.Dtype
    factor: float
    is_b: bool
    joined: bool

    def join(self, arrays: Mapping[str, mx.array]) -> mx.array:
        """The vector of these arrays, by path; zeros between them."""
        if not self.joined:
            return arrays[self.leaves[0].path]
        ends = [*(leaf.start for leaf in self.leaves[1:]), self.length]
        parts = []
        for leaf, end in zip(self.leaves, ends, strict=True):
            parts.append(arrays[leaf.path].reshape(-1))
            if end > leaf.end:
                parts.append(mx.zeros((end - leaf.end,), parts[-1].dtype))
        return mx.concatenate(parts)

    def apart(self, vector: mx.array) -> dict[str, mx.array]:
        """The arrays of a vector, by path."""
        if not self.joined:
            return {self.leaves[0].path: vector}
        paths = [leaf.path for leaf in self.leaves]

        # MLX's gradient of many slices is a sum of as many vectors; it is one concatenation.
        @mx.custom_function
        def apart(vector: mx.array) -> list[mx.array]:
            return [part.reshape(leaf.shape) for part, leaf in zip(self._parts(vector), self.leaves, strict=True)]

        @apart.vjp
        def joined(_vector: mx.array, cotangents: list[mx.array], _outputs: list[mx.array]) -> mx.array:
            return self.join(dict(zip(paths, cotangents, strict=True)))

        parts: Any = apart(vector)
        return dict(zip(paths, parts, strict=True))

    def _parts(self, vector: mx.array) -> list[mx.array]:
        """The numbers of each array: one operation, where a slice for each would be hundreds."""
        cuts = sorted({cut for leaf in self.leaves for cut in (leaf.start, leaf.end)} - {0, self.length})
        parts = dict(zip([0, *cuts], mx.split(vector, cuts), strict=True))
        return [parts[leaf.start] for leaf in self.leaves]


class Grouping:
    """Which trained arrays of a model share a vector.

    Those of low-rank layers do where the optimizer is elementwise: hundreds of small matrices would cost hundreds of
    kernels for every operation of the guard and the optimizer. Anything else keeps its shape: the gradients that are
    joined must not wait for each other with all that they are made from, and of those layers they do not.

    Args:
        model: everything but its trainable parameters is frozen.
        activations: the type that adapters are computed in.
    """

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, activations: mx.Dtype) -> None:
        trainable = model.trainable_parameters()
        self._paths: Tree = tree_map_with_path(lambda path, _: path, trainable)
        self._low_rank = {name: m for name, m in model.named_modules() if isinstance(m, LowRank)}
        arrays = flat(trainable)
        alike = self._alike(arrays, type(optimizer) in ELEMENTWISE)
        self.groups = {
            key: self._group([(path, arrays[path]) for path in paths], activations, joined=key != paths[0])
            for key, paths in alike.items()
        }

    def join(self, tree: Tree) -> Vectors:
        """The vectors of a tree like the trainable parameters."""
        return self.join_flat(flat(tree))

    def join_flat(self, arrays: Mapping[str, mx.array]) -> Vectors:
        """The vectors of arrays by path.

        Raises:
            KeyError: one is missing.
        """
        return {key: group.join(arrays) for key, group in self.groups.items()}

    def apart(self, vectors: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The arrays of vectors, by path."""
        return {path: array for key, group in self.groups.items() for path, array in group.apart(vectors[key]).items()}

    def tree(self, vectors: Mapping[str, mx.array]) -> Tree:
        """The same in the tree of the trainable parameters."""
        arrays = self.apart(vectors)
        return tree_map(lambda path: arrays[path], self._paths)

    def cast(self, vectors: Mapping[str, mx.array], *, folded: bool = False) -> Tree:
        """The tree in the types to compute in.

        Args:
            folded: with the scale of the low-rank layers in their B matrices.
        """
        made = {}
        for key, group in self.groups.items():
            vector = vectors[key] * group.factor if folded and group.factor != 1.0 else vectors[key]
            made[key] = vector.astype(group.kind)
        return self.tree(made)

    def fold(self, *, folded: bool) -> None:
        """Tell the low-rank layers whether their B matrices hold the scale."""
        for module in self._low_rank.values():
            module.folded = folded

    def _alike(self, arrays: Mapping[str, mx.array], elementwise: bool) -> dict[str, list[str]]:
        """Paths of arrays that share a vector, or are by themselves."""
        longest = LONGEST if on_cpu() else sum(array.size for array in arrays.values())
        alike: dict[str, list[str]] = {}
        lengths: Counter[str] = Counter()
        for path, array in arrays.items():
            key = path
            if elementwise and path.rpartition(".")[0] in self._low_rank:
                lengths[self._key(path)] += array.size
                key = f"{self._key(path)} {lengths[self._key(path)] // (longest + 1)}"
            alike.setdefault(key, []).append(path)
        return alike

    def _key(self, path: str) -> str:
        name = path.rpartition(".")[2]
        factor = self._factor(path)
        return f"joined {name}" if factor == 1.0 else f"joined {name} × {factor!r}"

    def _factor(self, path: str) -> float:
        module, _, name = path.rpartition(".")
        return float(self._low_rank[module].scale) if name == "lora_b" and module in self._low_rank else 1.0

    def _group(self, arrays: list[tuple[str, mx.array]], activations: mx.Dtype, *, joined: bool) -> Group:
        sizes = [-(-array.size // ALIGNED) * ALIGNED for _, array in arrays]
        starts = itertools.accumulate(sizes, initial=0)
        leaves = tuple(Leaf(path, array.shape, start) for (path, array), start in zip(arrays, starts, strict=False))
        path, array = arrays[0]
        kind = activations if _is_adapter(path) else array.dtype
        return Group(leaves, sum(sizes), kind, self._factor(path), path.endswith("lora_b"), joined)


def _is_adapter(path: str) -> bool:
    return path.rpartition(".")[2] in ADAPTER_LEAVES
