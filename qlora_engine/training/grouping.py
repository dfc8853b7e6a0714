"""Which trained arrays of a model share a vector, and what the computation takes of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import mlx.core as mx
import mlx.optimizers as optim
from mlx import nn
from mlx.utils import tree_map, tree_map_with_path, tree_unflatten

from qlora_engine.training import join_kernel
from qlora_engine.training.cuda import KINDS
from qlora_engine.training.device import on_cpu
from qlora_engine.training.lowrank import LowRank
from qlora_engine.training.recompute import recomputes
from qlora_engine.training.siblings import Siblings, groups_of
from qlora_engine.training.tree import Tree, flat
from qlora_engine.training.vectors import Group, Joint, Vectors, fits_together, laid_out

ADAPTER_LEAVES = ("lora_a", "lora_b", "m")
# What these do to a number depends on that number alone; Muon and Adafactor look at whole matrices.
ELEMENTWISE = (optim.Adam, optim.AdamW, optim.SGD)
# Numbers in a vector on the CPU, where MLX fuses nothing and begins with ten operations before the first has ended:
# the optimizer would hold as many vectors.
LONGEST = 1 << 20


class Grouping:
    """Trained arrays in vectors.

    Those of low-rank layers share them where the optimizer is elementwise: hundreds of small matrices would cost
    hundreds of kernels for every operation of the guard and the optimizer. Anything else keeps its shape: the gradients
    that are joined must not wait for each other with all that they are made from, and of those layers they do not.

    Args:
        model: everything but its trainable parameters is frozen.
        activations: the type that adapters are computed in.
        joining: gradients are joined by a kernel of our own where it can.
    """

    def __init__(
        self, model: nn.Module, optimizer: optim.Optimizer, activations: mx.Dtype, *, joining: bool = False
    ) -> None:
        self._model, self._joining = model, joining
        trainable = model.trainable_parameters()
        self._paths: Tree = tree_map_with_path(lambda path, _: path, trainable)
        self._low_rank = {name: m for name, m in model.named_modules() if isinstance(m, LowRank)}
        shapes = {path: array.shape for path, array in flat(trainable).items()}
        alike = self._alike(shapes, type(optimizer) in ELEMENTWISE)
        self._joint = {} if recomputes(model) else self._lying_together(shapes, alike)
        self.groups = {
            key: self._group(
                {path: shapes[path] for path in paths},
                activations if _is_adapter(paths[0]) else flat(trainable)[paths[0]].dtype,
                joined=key != paths[0],
            )
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

    def cast(self, vectors: Mapping[str, mx.array]) -> Tree:
        """The tree in the types to compute in."""
        return self.tree({key: vectors[key].astype(group.kind) for key, group in self.groups.items()})

    def pieces(self, vectors: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """What the computation takes, in its types: B matrices hold the scale of their layer."""
        made: dict[str, mx.array] = {}
        for key, group in self.groups.items():
            vector = vectors[key] * group.factor if group.factor != 1.0 else vectors[key]
            made |= group.in_pieces(vector.astype(group.kind))
        return made

    def gradients(self, pieces: Mapping[str, mx.array]) -> Vectors:
        """Of the vectors, float32, from those of the pieces."""
        made = {}
        for key, group in self.groups.items():
            vector = self._joined(group, pieces)
            made[key] = vector * group.factor if group.factor != 1.0 else vector
        return made

    def _joined(self, group: Group, pieces: Mapping[str, mx.array]) -> mx.array:
        arrays = [pieces[piece.path] for piece in group.pieces]
        ours = self._joining and group.joined and group.kind in KINDS
        if ours and join_kernel.can_join([array.size for array in arrays]):
            return join_kernel.join(arrays)
        return group.join_pieces(pieces).astype(mx.float32)

    def place(self, pieces: Mapping[str, mx.array]) -> None:
        """Have the model compute with these pieces; within `placing`."""
        for siblings, (a, b) in self._joint.items():
            siblings.place(pieces[a.paths[0]], pieces[b.paths[0]])
        joint = {piece.paths[0] for pair in self._joint.values() for piece in pair}
        self._model.update(tree_unflatten([(path, piece) for path, piece in pieces.items() if path not in joint]))

    @contextmanager
    def placing(self) -> Iterator[None]:
        """While this lasts low-rank layers compute with pieces: until the gradient is there, for some compute again."""
        self._fold(True)
        try:
            yield
        finally:
            self._fold(False)
            for siblings in self._joint:
                siblings.displace()

    def _fold(self, folded: bool) -> None:
        for module in self._low_rank.values():
            module.folded = folded

    def _alike(self, shapes: Mapping[str, tuple[int, ...]], elementwise: bool) -> dict[str, list[str]]:
        """Paths of arrays that share a vector, or are by themselves."""
        sizes = {path: math.prod(shape) for path, shape in shapes.items()}
        longest = LONGEST if on_cpu() else sum(sizes.values())
        alike: dict[str, list[str]] = {}
        lengths: Counter[str] = Counter()
        for path, size in sizes.items():
            key = path
            if elementwise and path.rpartition(".")[0] in self._low_rank:
                lengths[self._key(path)] += size
                key = f"{self._key(path)} {lengths[self._key(path)] // (longest + 1)}"
            alike.setdefault(key, []).append(path)
        return alike

    def _lying_together(
        self, shapes: Mapping[str, tuple[int, ...]], alike: Mapping[str, list[str]]
    ) -> dict[Siblings, tuple[Joint, Joint]]:
        """The A and the B matrices of siblings that can be computed with as they lie in a vector."""
        key_of = {path: key for key, paths in alike.items() for path in paths}
        names: dict[int, str] = {}
        for name, module in self._low_rank.items():
            names.setdefault(id(module), name)  # of several the one that a model is updated with last
        found = {}
        for siblings in groups_of(self._model):
            a, b = (
                tuple(f"{names[id(member)]}.{leaf}" for member in siblings.members) for leaf in ("lora_a", "lora_b")
            )
            # What shares no vector is its own key, and keeps its shape there.
            one_vector = all(
                all(path in shapes and key_of[path] != path for path in paths)
                and len({key_of[path] for path in paths}) == 1
                for paths in (a, b)
            )
            if one_vector and fits_together(shapes[path] for path in (*a, *b)):
                found[siblings] = (Joint(a, turned=True), Joint(b, turned=not siblings.how.flat))
        return found

    def _key(self, path: str) -> str:
        name = path.rpartition(".")[2]
        factor = self._factor(path)
        return f"joined {name}" if factor == 1.0 else f"joined {name} × {factor!r}"

    def _factor(self, path: str) -> float:
        module, _, name = path.rpartition(".")
        return float(self._low_rank[module].scale) if name == "lora_b" and module in self._low_rank else 1.0

    def _group(self, shapes: dict[str, tuple[int, ...]], kind: mx.Dtype, *, joined: bool) -> Group:
        joint = [piece for pair in self._joint.values() for piece in pair if joined and piece.paths[0] in shapes]
        leaves, pieces, length = laid_out(shapes, joint)
        path = leaves[0].path
        return Group(leaves, pieces, length, kind, self._factor(path), path.endswith("lora_b"), joined)


def _is_adapter(path: str) -> bool:
    return path.rpartition(".")[2] in ADAPTER_LEAVES
