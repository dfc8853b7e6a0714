"""Tiny models with random weights and tiny data, so that a real training process takes a second or two."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def make_model(
    folder: Path,
    *,
    hidden: int = 32,
    layers: int = 2,
    bits: int | None = 4,
    vocabulary: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Write a llama model with random weights and a byte-level tokenizer; returns the folder."""
    import mlx.core as mx
    from mlx import nn
    from mlx.utils import tree_flatten
    from mlx_lm.models import llama

    folder.mkdir(parents=True, exist_ok=True)
    size = make_tokenizer(folder, vocabulary)
    config: dict[str, Any] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": size,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
    }
    mx.random.seed(seed)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    if bits:
        nn.quantize(model, group_size=32, bits=bits)
        config["quantization"] = {"group_size": 32, "bits": bits}
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_tokenizer(folder: Path, vocabulary: Sequence[str] = ()) -> int:
    """Write a byte-level tokenizer with a chat template; returns its size, padded to a multiple of 32."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL, *alphabet, *vocabulary]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "chat_template": CHAT_TEMPLATE,
            }
        )
    )
    return -(-len(tokens) // 32) * 32


def make_data(folder: Path, *, train: int = 20, valid: int = 5, test: int = 0, seed: int = 0) -> Path:
    """Write prompt/completion rows of mixed lengths; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    for name, rows in (("train", train), ("valid", valid), ("test", test)):
        if rows:
            lines = (json.dumps(_row(draw)) for _ in range(rows))
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _row(draw: random.Random) -> dict[str, str]:
    number = draw.randrange(10, 10 ** draw.randrange(2, 12))
    return {"prompt": f"{number}?", "completion": f"{number} is {'even' if number % 2 == 0 else 'odd'}"}


def job(model: Path, data: Path, **keys: Any) -> dict[str, Any]:
    """A short job on a tiny model; `keys` replace or add."""
    return {
        "model": str(model),
        "data": str(data),
        "iters": 12,
        "batch_size": 2,
        "grad_accumulation_steps": 2,
        "num_layers": -1,
        "lora_parameters": {"rank": 4, "scale": 8.0, "dropout": 0.0},
        "learning_rate": 1e-3,
        "steps_per_report": 3,
        "steps_per_eval": 6,
        "save_every": 4,
        "val_batches": -1,
        "max_seq_length": 128,
        "samples": 0,
        **keys,
    }


def write_job(path: Path, values: dict[str, Any]) -> Path:
    """Write a job file in the format of its ending (.yaml or .json)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1))  # JSON is YAML
    return path
