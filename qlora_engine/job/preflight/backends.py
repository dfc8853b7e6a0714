"""What each backend of MLX keeps and uses while it trains: the constants of the memory estimate.

A layer's tensors are counted in kinds that differ in width. The counts follow from the graph: on the CPU a
normalization, a rotary embedding, a softmax and an activation function are made of elementary operations, each of
which keeps what its gradient needs; a GPU has one kernel for each, which keeps its inputs and output.
`benchmarks/memory.py --fit` compares them with measured peaks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Name = Literal["cpu", "metal", "cuda"]
LOGITS_BYTES = 64 << 20  # of float32 logits in one chunk of the loss, as in qlora_engine.training.loss


@dataclass(frozen=True)
class Tensors:
    """How many tensors of each width there are, for every position of a micro-batch.

    Attributes:
        hidden: as wide as the residual stream.
        query: as wide as all heads together.
        key: as wide as the heads of keys, and of values, together.
        mlp: as wide as the feed-forward part.
        scores: as wide as the sequence, one for each head.
    """

    hidden: float = 0.0
    query: float = 0.0
    key: float = 0.0
    mlp: float = 0.0
    scores: float = 0.0


@dataclass(frozen=True)
class Backend:
    """One backend's constants.

    Attributes:
        kept: tensors that a trained layer keeps between its forward and its backward pass, beside the inputs of its
            adapters.
        working: tensors beside those at the fullest moment of one layer's backward pass.
        again: share of the next layer's activations that are there as well when layers are computed again, since
            operations are started before those before them have ended.
        logits: float32 copies of a chunk of logits at the fullest moment of the loss.
        chunks: how many chunks are under way at once, for the same reason.
        ahead: bytes that operations under way hold after nothing else needs them.
        slack: what an allocation takes over what it asks for, as a factor.
    """

    name: Name
    kept: Tensors
    working: Tensors
    again: float
    logits: float
    chunks: float
    ahead: int
    slack: float


# Kept: the inputs of both normalizations; the query; key, its rotated copy, value; gate, its sigmoid, up; the
# attention's probabilities.
CPU = Backend(
    "cpu",
    kept=Tensors(hidden=2, query=1, key=3, mlp=3, scores=1),
    working=Tensors(query=2, mlp=7),
    again=0.5,
    logits=4.0,
    chunks=1.5,
    ahead=0,
    slack=1.02,
)
# Counted as well: the inputs of both normalizations; the query and the attention's output, in the order of heads; key
# and value; gate and up, whose product is made again. Attention, normalization and rotary embedding are one kernel each
# and keep nothing inside. The CPU's working tensors were fitted to measured peaks of small shapes; CUDA's are what is
# there when gate and up get their gradients.
CUDA = Backend(
    "cuda",
    kept=Tensors(hidden=2, query=2, key=2, mlp=2),
    working=Tensors(hidden=3, query=3, key=3, mlp=4),
    again=0.0,
    logits=3.0,
    chunks=3.0,
    ahead=1 << 30,
    slack=1.03,
)
# Not measured: CUDA's, since the same kernels are fused.
METAL = replace(CUDA, name="metal")
BACKENDS: dict[Name, Backend] = {backend.name: backend for backend in (CPU, CUDA, METAL)}
