"""The config.json of the MLX model that a llama-architecture GGUF becomes."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from qlora_engine.training.gguf import Gguf
from qlora_engine.training.gguf_llama import BITS, GROUP_SIZE, Part, Shape, meta, refused

# Llama 3.1 and later: long contexts by slower rotation of the low frequencies.
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def build_config(
    gguf: Gguf, shape: Shape, modules: list[Part], rope_factors: list[float] | None, end_tokens: list[int]
) -> dict[str, Any]:  # Any: JSON
    """The content of config.json.

    Args:
        rope_factors: the values of `rope_freqs.weight`, where the file has it.
        end_tokens: ids of the tokens that end a text, the first one the usual one.
    """
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": meta(gguf, "llama.context_length", int),
        "rms_norm_eps": _short(meta(gguf, "llama.attention.layer_norm_rms_epsilon", float)),
        "rope_theta": _short(meta(gguf, "llama.rope.freq_base", float, 10_000.0)),
        "rope_scaling": _rope_scaling(gguf, shape, rope_factors),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "eos_token_id": end_tokens[0] if len(end_tokens) == 1 else end_tokens,
    }
    if "tokenizer.ggml.bos_token_id" in gguf.metadata:
        config["bos_token_id"] = meta(gguf, "tokenizer.ggml.bos_token_id", int)
    quantization = _quantization(modules)
    if quantization:
        config["quantization"] = config["quantization_config"] = quantization
    return config


def _quantization(modules: list[Part]) -> dict[str, Any] | None:
    """The usual bits for all, and an entry of its own for each matrix that has others or none."""
    matrices = [part for part in modules if len(part.tensor.shape) == 2]
    bits = Counter(BITS[part.tensor.type] for part in matrices if part.tensor.type in BITS)
    if not bits:
        return None
    usual = bits.most_common(1)[0][0]
    result: dict[str, Any] = {"group_size": GROUP_SIZE, "bits": usual, "mode": "affine"}
    for part in matrices:
        own = BITS.get(part.tensor.type)
        if own is None:
            result[part.module] = False
        elif own != usual:
            result[part.module] = {"group_size": GROUP_SIZE, "bits": own, "mode": "affine"}
    return result


def _rope_scaling(gguf: Gguf, shape: Shape, factors: list[float] | None) -> dict[str, Any] | None:
    # Without a type, llama.cpp takes the factor as a linear one; a factor of 0 means none.
    kind = meta(gguf, "llama.rope.scaling.type", str, "linear")
    factor = meta(gguf, "llama.rope.scaling.factor", float, meta(gguf, "llama.rope.scale_linear", float, 1.0))
    plain = kind == "none" or (kind == "linear" and factor in (0.0, 1.0))
    if factors is None and plain:
        return None
    if factors is None and kind == "linear" and factor > 0:
        return {"rope_type": "linear", "factor": _short(factor)}
    if factors is not None and plain:
        theta = meta(gguf, "llama.rope.freq_base", float, 10_000.0)
        expected = llama3_factors(theta, shape.head_dim, max(factors))
        if len(factors) == len(expected) and all(
            math.isclose(found, wanted, rel_tol=1e-3) for found, wanted in zip(factors, expected, strict=True)
        ):
            return {"rope_type": "llama3", "factor": _short(max(factors)), **LLAMA3_ROPE}
        kind = "other than that of Llama 3 (rope_freqs.weight)"
    raise refused(
        gguf,
        f"The scaling of the rotary positions is {kind}, which is not supported.",
        "Take the model in MLX format from where it is published, and give its folder.",
    )


def llama3_factors(theta: float, head_dim: int, factor: float) -> list[float]:
    """By how much Llama 3.1 divides each of the `head_dim / 2` frequencies."""
    low, high = LLAMA3_ROPE["low_freq_factor"], LLAMA3_ROPE["high_freq_factor"]
    context = LLAMA3_ROPE["original_max_position_embeddings"]
    result = []
    for pair in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (pair / head_dim)
        if wavelength < context / high:
            result.append(1.0)
        elif wavelength > context / low:
            result.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            result.append(1 / ((1 - smooth) / factor + smooth))
    return result


def _short(number: float) -> float:
    """The shortest decimal that is the same in float32: 1e-05, not 9.999999747378752e-06."""
    return float(f"{number:.7g}")
