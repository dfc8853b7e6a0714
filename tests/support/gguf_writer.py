"""Writes small GGUF files for tests, and computes with their weights as llama.cpp does.

It knows nothing of MLX's layout: blocks are made and read by ggml's definitions, and the rotary positions
turn neighbouring rows, as llama.cpp's do. A conversion with the same logits has undone the row order.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

Array = np.ndarray[Any, np.dtype[np.float64]]
Value = str | int | float | bool | list[str] | list[int] | list[float]

TYPE_NUMBERS = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 8,
    "Q6_K": 14,
    "Q4_K": 12,
    "IQ4_NL": 20,
    "BF16": 30,
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = ["th", "the", "Ġthe", "12"]


@dataclass
class Raw:
    """A tensor as it stands in the file, with the values that it means."""

    type: str
    shape: tuple[int, ...]
    data: bytes
    values: Array = field(default_factory=lambda: np.zeros(0))


def tensor(rng: np.random.Generator, kind: str, *shape: int, scale: float = 0.05) -> Raw:
    """Random blocks of a type, and what they mean."""
    if kind in ("F32", "F16"):
        values = (rng.standard_normal(shape) * scale).astype("<f4" if kind == "F32" else "<f2")
        return Raw(kind, shape, values.tobytes(), values.astype(np.float64))
    rows, groups = shape[0], shape[1] // 32
    blocks, values = [], []
    for _ in range(rows * groups):
        d = np.float16(rng.uniform(0.2, 1.0) * scale * (1 / 64 if kind == "Q8_0" else 1 / 4))
        if kind == "Q8_0":
            q = rng.integers(-128, 128, 32)
            blocks.append(d.tobytes() + q.astype(np.int8).tobytes())
            values.append(float(d) * q)
            continue
        q = rng.integers(0, 16, 32)
        packed = (q[:16] | (q[16:] << 4)).astype(np.uint8).tobytes()
        if kind == "Q4_0":
            blocks.append(d.tobytes() + packed)
            values.append(float(d) * (q - 8))
        else:
            m = np.float16(-7.3 * float(d))
            blocks.append(d.tobytes() + m.tobytes() + packed)
            values.append(float(d) * q + float(m))
    return Raw(kind, shape, b"".join(blocks), np.concatenate(values).reshape(shape))


def write_gguf(path: Path, metadata: dict[str, Any], tensors: dict[str, Raw], *, version: int = 3) -> Path:
    """A GGUF file with these metadata and tensors."""
    alignment = metadata.get("general.alignment", 32)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += _text(key) + _value(value)
    offset, body = 0, b""
    for name, raw in tensors.items():
        head += _text(name) + struct.pack("<I", len(raw.shape))
        head += b"".join(struct.pack("<Q", size) for size in reversed(raw.shape))
        head += struct.pack("<IQ", TYPE_NUMBERS[raw.type], offset)
        body += raw.data + bytes(-len(raw.data) % alignment)
        offset = len(body)
    path.write_bytes(head + bytes(-len(head) % alignment) + body)
    return path


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(_text(item) for item in value)
    assert isinstance(value, list)
    kind, form = (5, "i") if isinstance(value[0], int) else (6, "f")
    return struct.pack(f"<IIQ{len(value)}{form}", 9, kind, len(value), *value)


def tiny_metadata(**changes: Value | None) -> dict[str, Any]:
    """Metadata of a llama with 2 layers, 4 heads over 2 key heads, and a byte-level vocabulary."""
    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet()), *WORDS]
    metadata = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.license": "apache-2.0",
        "llama.block_count": 2,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10_000.0,
        "llama.context_length": 128,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)),
        "tokenizer.ggml.merges": ["t h", "th e", "Ġ the", "1 2"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
    }
    metadata.update({key.replace("__", "."): value for key, value in changes.items()})
    return {key: value for key, value in metadata.items() if value is not None}


def tiny_tensors(
    metadata: dict[str, Any],
    kind: str = "Q4_0",
    *,
    others: dict[str, str] | None = None,
    output: bool = False,
    head_dim: int = 16,
    seed: int = 0,
) -> dict[str, Raw]:
    """Random tensors for `metadata`; `others` gives single tensors another type."""
    rng = np.random.default_rng(seed)
    hidden, wide = metadata["llama.embedding_length"], metadata["llama.feed_forward_length"]
    q = metadata["llama.attention.head_count"] * head_dim
    kv = metadata["llama.attention.head_count_kv"] * head_dim
    words = len(metadata["tokenizer.ggml.tokens"])
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (words, hidden), "output_norm": (hidden,)}
    for layer in range(metadata["llama.block_count"]):
        block = f"blk.{layer}."
        shapes |= {f"{block}attn_norm": (hidden,), f"{block}ffn_norm": (hidden,)}
        shapes |= {
            f"{block}attn_q": (q, hidden),
            f"{block}attn_k": (kv, hidden),
            f"{block}attn_v": (kv, hidden),
        }
        shapes |= {f"{block}attn_output": (hidden, q), f"{block}ffn_down": (hidden, wide)}
        shapes |= {f"{block}ffn_gate": (wide, hidden), f"{block}ffn_up": (wide, hidden)}
    if output:
        shapes["output"] = (words, hidden)
    result = {}
    for name, shape in shapes.items():
        chosen = (others or {}).get(name, kind if len(shape) == 2 else "F32")
        # Large q and k make attention depend on positions, so that a wrong row order shows.
        scale = 2.0 if name.endswith(("attn_q", "attn_k", "_norm", "token_embd")) else 0.5
        result[f"{name}.weight"] = tensor(rng, chosen, *shape, scale=scale)
    return result


def logits(
    metadata: dict[str, Any],
    tensors: dict[str, Raw],
    ids: list[int],
    *,
    head_dim: int = 16,
    embedded: Array | None = None,
) -> Array:
    """float64 (T, vocabulary): the logits as llama.cpp defines them, rotating neighbouring rows.

    Args:
        embedded: float64 (T, hidden), the rows of the embedding; otherwise those of `ids`.
    """
    heads, kv_heads = metadata["llama.attention.head_count"], metadata["llama.attention.head_count_kv"]
    eps, base = metadata["llama.attention.layer_norm_rms_epsilon"], metadata["llama.rope.freq_base"]
    weight = {name.removesuffix(".weight"): raw.values for name, raw in tensors.items()}
    factors = weight.get("rope_freqs", np.ones(head_dim // 2))
    positions = np.arange(len(ids)) / metadata.get("llama.rope.scaling.factor", 1.0)
    angles = positions[:, None] * base ** (-np.arange(0, head_dim, 2) / head_dim) / factors

    def norm(x: Array, w: Array) -> Array:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w

    def rotate(x: Array) -> Array:  # (T, heads, head_dim)
        even, odd = x[..., 0::2], x[..., 1::2]
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)

    h = weight["token_embd"][ids] if embedded is None else embedded
    length = len(ids)
    for layer in range(metadata["llama.block_count"]):
        w = {name.split(".")[2]: value for name, value in weight.items() if name.startswith(f"blk.{layer}.")}
        x = norm(h, w["attn_norm"])
        q = rotate((x @ w["attn_q"].T).reshape(length, heads, head_dim))
        k = rotate((x @ w["attn_k"].T).reshape(length, kv_heads, head_dim)).repeat(heads // kv_heads, axis=1)
        v = (x @ w["attn_v"].T).reshape(length, kv_heads, head_dim).repeat(heads // kv_heads, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(head_dim)
        scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        attended = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v)
        h = h + attended.reshape(length, -1) @ w["attn_output"].T
        x = norm(h, w["ffn_norm"])
        gate = x @ w["ffn_gate"].T
        h = h + (gate / (1 + np.exp(-gate)) * (x @ w["ffn_up"].T)) @ w["ffn_down"].T
    return norm(h, weight["output_norm"]) @ weight.get("output", weight["token_embd"]).T
