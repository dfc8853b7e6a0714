"""Trees of arrays, as `mlx.nn.Module.parameters()` gives them, and their flat form."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

Tree = Any  # a nested dict or list of mx.array


def flat(tree: Tree) -> dict[str, mx.array]:
    """The arrays of a tree by dotted names, in the tree's order."""
    pairs: Any = tree_flatten(tree)  # typed for its other form, which returns a dict
    return dict(pairs)
