"""Writes a llama model in memory as a GGUF file in 16 bits, for llama.cpp and Ollama.

The names, and the order of rows that llama.cpp's rotary positions want, are mlx_lm's; the metadata is our own, since
llama.cpp does not open a file with that of mlx_lm 0.32.2 (it writes the kinds of tokens as another type of number).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.gguf import permute_weights, translate_weight_names
from mlx_lm.models.llama import ModelArgs
from mlx_lm.tokenizer_utils import TokenizerWrapper

from qlora_engine.job.errors import ConversionRefused, SystemRefused
from qlora_engine.job.unforeseen import said_by
from qlora_engine.training.export_vocabulary import REMEDY, Metadata, vocabulary
from qlora_engine.training.gguf import read_gguf
from qlora_engine.training.gguf_config import LLAMA3_ROPE, llama3_factors
from qlora_engine.training.gguf_llama import ROPE_FACTORS

Beat = Callable[[], None]

ARCHITECTURES = ("llama", "mistral")  # `model_type`; mlx_lm computes both in the same way, and so does llama.cpp
F16_FILE = 1  # ggml's number for a file whose matrices are float16
CONTEXT = 2048  # transformers' default for a llama whose config does not say


def metadata(config: dict[str, Any], tokenizer: TokenizerWrapper, name: str, where: str) -> Metadata:
    """Everything in the file but its tensors, from the model's config and tokenizer alone.

    Args:
        config: the model's config.json.
        tokenizer: of the model.
        name: of the model, for people.
        where: the model's folder, for errors.

    Raises:
        ConversionRefused: llama.cpp is not known to have this architecture, these positions or this tokenizer.
    """
    args = _checked(config, where)
    head = args.head_dim or args.hidden_size // args.num_attention_heads
    ends = config.get("eos_token_id")
    counts: dict[str, int] = {
        "context_length": args.max_position_embeddings or CONTEXT,
        "vocab_size": args.vocab_size,
        "embedding_length": args.hidden_size,
        "block_count": args.num_hidden_layers,
        "feed_forward_length": args.intermediate_size,
        "attention.head_count": args.num_attention_heads,
        "attention.head_count_kv": args.num_key_value_heads or args.num_attention_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
    }
    result: Metadata = {"general.architecture": "llama", "general.name": name}
    result["general.file_type"] = mx.array(F16_FILE, mx.uint32)
    result |= {f"llama.{key}": mx.array(number, mx.uint32) for key, number in counts.items()}
    result["llama.attention.layer_norm_rms_epsilon"] = mx.array(args.rms_norm_eps, mx.float32)
    result["llama.rope.freq_base"] = mx.array(args.rope_theta, mx.float32)
    if (scaling := args.rope_scaling) and _rope_kind(scaling) == "linear":
        result["llama.rope.scaling.type"] = "linear"
        result["llama.rope.scaling.factor"] = mx.array(float(scaling["factor"]), mx.float32)
    return result | vocabulary(
        tokenizer, args.vocab_size, where, ends if isinstance(ends, list) else [] if ends is None else [ends]
    )


def _checked(config: dict[str, Any], where: str) -> ModelArgs:
    """The model's sizes, where all that decides what it computes can be said in GGUF."""
    family = str(config.get("model_type"))
    if family not in ARCHITECTURES:
        raise ConversionRefused(
            f"A model of the architecture {family!r:.60} cannot be written as GGUF; {' and '.join(ARCHITECTURES)} can.",
            where=where,
            remedy=REMEDY,
        )
    try:
        args: ModelArgs = ModelArgs.from_dict(config)
    except TypeError as error:  # a size is missing
        raise ConversionRefused(
            f"The model's config.json is not that of a llama: {said_by(error)}.", where=where, remedy=REMEDY
        ) from None
    scaling = _rope_kind(args.rope_scaling)
    like_llama3 = scaling == "llama3" and all((args.rope_scaling or {}).get(key) == n for key, n in LLAMA3_ROPE.items())
    strange = {
        "biases": args.attention_bias or args.mlp_bias,
        "a rotation of neighbours": args.rope_traditional,
        "sliding windows": "sliding_attention" in (args.layer_types or ()),
        f"the activation {config.get('hidden_act')}": config.get("hidden_act", "silu") != "silu",
        f"positions that are scaled by {scaling}": scaling not in ("none", "linear") and not like_llama3,
    }
    for what, has in strange.items():
        if has:
            raise ConversionRefused(f"The model cannot be written as GGUF: it has {what}.", where=where, remedy=REMEDY)
    return args


def _rope_kind(scaling: dict[str, Any] | None) -> str:
    kind = (scaling or {}).get("rope_type") or (scaling or {}).get("type") or "none"
    return "none" if kind == "default" else str(kind)


def write(weights: dict[str, mx.array], config: dict[str, Any], about: Metadata, path: Path, *, beat: Beat) -> None:
    """Write the file, and read its header back.

    Args:
        weights: of the model by mlx_lm's names, none of them quantized. They are taken out one after another, so that
            the memory holds the model but once.
        config: as for `metadata`, which made `about`.
        beat: is called after each weight.

    Raises:
        ConversionRefused: a weight is too large for float16.
        SystemRefused: the file is not whole on the disk.
    """
    args = _checked(config, str(path))
    tensors: dict[str, mx.array] = {}
    for name in [*weights]:
        tensor = _as_llama_cpp(name, weights.pop(name), args)
        if not mx.isfinite(tensor).all().item():  # which also computes it
            raise ConversionRefused(
                f"The weights {name} are too large for float16, or are no numbers.", where=str(path), remedy=REMEDY
            )
        tensors[translate_weight_names(name)] = tensor
        beat()
    if _rope_kind(args.rope_scaling) == "llama3":
        head = args.head_dim or args.hidden_size // args.num_attention_heads
        factor = float((args.rope_scaling or {})["factor"])
        tensors[ROPE_FACTORS] = mx.array(llama3_factors(args.rope_theta, head, factor), mx.float32)
    mx.save_gguf(str(path), tensors, about)
    _check(path, tensors)


def _as_llama_cpp(name: str, weight: mx.array, args: ModelArgs) -> mx.array:
    if weight.ndim == 1:
        return weight.astype(mx.float32)
    if name.endswith("self_attn.q_proj.weight"):
        weight = permute_weights(weight, args.num_attention_heads, args.num_attention_heads)
    elif name.endswith("self_attn.k_proj.weight"):
        weight = permute_weights(weight, args.num_attention_heads, args.num_key_value_heads)
    return weight.astype(mx.float16)


def _check(path: Path, tensors: dict[str, mx.array]) -> None:
    """MLX does not say when a disk is full: every tensor must lie within the file, with its shape."""
    try:
        found = read_gguf(path).tensors
    except ConversionRefused as damaged:
        raise SystemRefused(
            f"The file is not whole on the disk: {damaged.what}", where=str(path), remedy="Make room on the disk."
        ) from None
    wrong = [name for name, tensor in tensors.items() if name not in found or found[name].shape != tensor.shape]
    if wrong:
        raise AssertionError(f"{wrong[0]} is not in the file as it should be")
