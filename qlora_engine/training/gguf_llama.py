"""What a llama-architecture GGUF must hold to become an MLX model.

Nothing here reads weights: the header alone decides whether a file can be converted without loss.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TypeVar

from qlora_engine.job.errors import ConversionRefused
from qlora_engine.job.text import many
from qlora_engine.training.gguf import Gguf, Tensor, Value

GROUP_SIZE = 32  # values in a block of Q4_0, Q4_1 and Q8_0, and so in a quantized group of MLX
BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
FLOATS = ("F32", "F16")
MAX_LAYERS = 1024

LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = "rope_freqs.weight"

_Kind = TypeVar("_Kind", str, int, float, bool)


@dataclass(frozen=True)
class Shape:
    """The sizes of a llama model; `head_dim` is the width of one attention head."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


@dataclass(frozen=True)
class Part:
    """One module of the MLX model and the tensor that it comes from.

    Attributes:
        module: the module's path in mlx_lm's llama, as `model.layers.0.self_attn.q_proj`.
        heads: the number of attention heads whose rows llama.cpp has permuted; 0 for none.
    """

    module: str
    tensor: Tensor
    heads: int = 0


def meta(gguf: Gguf, key: str, kind: type[_Kind], default: _Kind | None = None) -> _Kind:
    """The metadata value of `key`, which must be of the type `kind`; an int will do for a float.

    Raises:
        ConversionRefused: it is missing, with no default, or of another type.
    """
    value: Value | None = gguf.metadata.get(key, default)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        found = "is missing" if value is None else f"is {value!r:.80}, not of type {kind.__name__}"
        raise refused(gguf, f"The metadata value {key} {found}.", "Download the file again, or convert it anew.")
    return value


def check_supported(gguf: Gguf) -> None:
    """Refuse what cannot be converted exactly: another architecture, another tensor type.

    Raises:
        ConversionRefused: with the architecture, or the first tensor and its type.
    """
    architecture = meta(gguf, "general.architecture", str)
    if architecture != "llama":
        raise refused(
            gguf,
            f"The architecture {architecture!r} is not supported; only 'llama' is.",
            "Take the model in MLX format from where it is published, and give its folder.",
        )
    if meta(gguf, "llama.expert_count", int, 0) > 0:
        raise refused(
            gguf,
            "This is a mixture of experts (llama.expert_count), which is not supported.",
            "Take the model in MLX format from where it is published, and give its folder.",
        )
    if meta(gguf, "split.count", int, 1) > 1:
        raise refused(
            gguf,
            "This is one part of a model that is split over several files.",
            "Put the parts together first: `llama-gguf-split --merge FIRST-PART.gguf WHOLE.gguf`.",
        )
    wrong = [tensor for tensor in gguf.tensors.values() if tensor.type not in (*BITS, *FLOATS)]
    if wrong:
        others = f"; {many(len(wrong) - 1, 'other tensor')} cannot be taken either" if len(wrong) > 1 else ""
        raise refused(
            gguf,
            f"The tensor {wrong[0].name} is {wrong[0].type}, which MLX cannot take without loss{others}.",
            "Choose the Q4_0, Q4_1 or Q8_0 file of this model. A Q4_0 file may still hold single tensors in "
            "another type: choose the Q8_0 file then, or quantize with `llama-quantize --pure`.",
        )


def read_shape(gguf: Gguf) -> Shape:
    """The model's sizes from the metadata.

    Raises:
        ConversionRefused: a size is missing or impossible, or only part of a head is rotated.
    """
    hidden = meta(gguf, "llama.embedding_length", int)
    heads = meta(gguf, "llama.attention.head_count", int)
    layers = meta(gguf, "llama.block_count", int)
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None:
        raise refused(gguf, "The tensor token_embd.weight is missing.", "Download the file again.")
    shape = Shape(
        layers=layers,
        hidden=hidden,
        intermediate=meta(gguf, "llama.feed_forward_length", int),
        heads=heads,
        kv_heads=meta(gguf, "llama.attention.head_count_kv", int, heads),
        head_dim=meta(gguf, "llama.attention.key_length", int, hidden // max(heads, 1)),
        vocabulary=embedding.shape[0],
    )
    rotated = meta(gguf, "llama.rope.dimension_count", int, shape.head_dim)
    value_dim = meta(gguf, "llama.attention.value_length", int, shape.head_dim)
    possible = (
        min(shape.layers, hidden, shape.intermediate, heads, shape.kv_heads, shape.head_dim) > 0
        and layers <= MAX_LAYERS
        and heads % shape.kv_heads == 0
        and shape.head_dim % 2 == 0
        and rotated == value_dim == shape.head_dim
    )
    if not possible:
        raise refused(
            gguf,
            f"These are not the sizes of a llama model: {shape}, rotated {rotated}, value {value_dim}.",
            "Take the model in MLX format from where it is published, and give its folder.",
        )
    return shape


def parts(gguf: Gguf, shape: Shape) -> list[Part]:
    """Each module of the MLX model with its tensor, in the model's order; no tensor is left over.

    Raises:
        ConversionRefused: a tensor is missing, of another shape, or not known.
    """
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    wanted: dict[str, tuple[str, tuple[int, ...], int]] = {
        "token_embd": ("model.embed_tokens", (shape.vocabulary, shape.hidden), 0)
    }
    sizes: dict[str, tuple[int, ...]] = {
        "attn_norm": (shape.hidden,),
        "attn_q": (q, shape.hidden),
        "attn_k": (kv, shape.hidden),
        "attn_v": (kv, shape.hidden),
        "attn_output": (shape.hidden, q),
        "ffn_norm": (shape.hidden,),
        "ffn_gate": (shape.intermediate, shape.hidden),
        "ffn_up": (shape.intermediate, shape.hidden),
        "ffn_down": (shape.hidden, shape.intermediate),
    }
    permuted = {"attn_q": shape.heads, "attn_k": shape.kv_heads}
    for layer in range(shape.layers):
        for ours, theirs in LAYER.items():
            module = f"model.layers.{layer}.{theirs}"
            wanted[f"blk.{layer}.{ours}"] = (module, sizes[ours], permuted.get(ours, 0))
    wanted["output_norm"] = ("model.norm", (shape.hidden,), 0)
    if "output.weight" in gguf.tensors:
        wanted["output"] = ("lm_head", (shape.vocabulary, shape.hidden), 0)

    result = []
    for name, (module, size, heads) in wanted.items():
        tensor = gguf.tensors.get(f"{name}.weight")
        if tensor is None:
            raise refused(gguf, f"The tensor {name}.weight is missing.", "Download the file again.")
        if tensor.shape != size:
            raise refused(
                gguf,
                f"The tensor {tensor.name} has the shape {tensor.shape} where {size} belongs.",
                "Download the file again, or take the model in MLX format and give its folder.",
            )
        if len(size) == 1 and tensor.type in BITS:
            raise refused(gguf, f"The norm {tensor.name} is quantized ({tensor.type}).", "Take another file.")
        result.append(Part(module, tensor, heads))
    unknown = gguf.tensors.keys() - {f"{name}.weight" for name in wanted} - {ROPE_FACTORS}
    if unknown:
        raise refused(
            gguf,
            f"The tensor {min(unknown)} does not belong to a plain llama model.",
            "Take the model in MLX format from where it is published, and give its folder.",
        )
    return result


def refused(gguf: Gguf, what: str, remedy: str) -> ConversionRefused:
    """The error for a file that cannot be converted."""
    # Names come from the file: no control characters, and no bytes that a terminal cannot take.
    plain = re.sub(r"[\x00-\x1f\x7f]", "?", what).encode("utf-8", "backslashreplace").decode()
    return ConversionRefused(plain, where=str(gguf.path), remedy=remedy)
