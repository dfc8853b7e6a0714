"""Time the training step on a model shape with random 4-bit weights: one line of JSON.

    python benchmarks/step.py --shape mistral-7b --width 2048 --rows 1 [--recompute] [--steps 12]

Needs no model and no data. The adapters have rank 16 on every linear layer, the optimizer is AdamW, every row is
full, and an optimizer step follows each micro-batch. The first steps are not timed: they compile kernels.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx import nn
from mlx_lm.models import llama
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import maybe_set_recommended_wired_limit

from qlora_engine.job.preflight.batch import GRID
from qlora_engine.training import own_kernels
from qlora_engine.training.device import on_cpu
from qlora_engine.training.dropout import DropoutKey
from qlora_engine.training.frozen import Ways, keep_dequantized, quantized_layers, use
from qlora_engine.training.gated import replace_gated
from qlora_engine.training.lowrank import replace_lora
from qlora_engine.training.model import activation_type, replace_quantized
from qlora_engine.training.recompute import checkpoint_layers
from qlora_engine.training.siblings import bring_together
from qlora_engine.training.step import TrainingStep
from qlora_engine.training.targets import Targets

LONGEST = 16384  # positions of a row

# name: hidden, layers, mlp, heads, key-value heads, head dimension, vocabulary, RoPE base
SHAPES = {
    "mistral-7b": (4096, 32, 14336, 32, 8, 128, 32768, 1e6),
    "llama-3.1-8b": (4096, 32, 14336, 32, 8, 128, 128256, 5e5),
    "llama-3.2-1b": (2048, 16, 8192, 32, 8, 64, 128256, 5e5),
    "smollm2-135m": (576, 30, 1536, 9, 3, 64, 49152, 1e5),
}


def settings_of(shape: str) -> dict[str, Any]:
    """The config of a llama model of this shape."""
    hidden, layers, mlp, heads, kv, dim, vocabulary, theta = SHAPES[shape]
    return {
        "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": mlp,
        "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": dim, "rms_norm_eps": 1e-5,
        "vocab_size": vocabulary, "rope_theta": theta, "tie_word_embeddings": False,
    }  # fmt: skip


def quantized(shape: str) -> nn.Module:
    """A llama model of this shape with random weights in 4 bits, groups of 64."""
    model = llama.Model(llama.ModelArgs.from_dict(settings_of(shape)))
    model.set_dtype(mx.bfloat16)
    nn.quantize(model, group_size=64, bits=4)
    return model


def model_of(
    shape: str, rank: int, *, recompute: bool, product: str, together: bool = False, kernels: Sequence[str] = (),
) -> nn.Module:  # fmt: skip
    """The same with adapters on every linear layer."""
    model = quantized(shape)
    if on_cpu():
        replace_quantized(model)
    mx.eval(model.parameters())
    model.freeze()
    if product == "kept":
        keep_dequantized(model, activation_type(model))
    for layer in quantized_layers(model).values():
        if product == "dequantized":
            use(layer, Ways("dequantized", "dequantized"))
    linear_to_lora_layers(model, len(model.layers), {"rank": rank, "scale": 2.0, "dropout": 0.0})
    replace_lora(model)
    replace_gated(model)
    if together:
        bring_together(model)
    own_kernels.use(model, kernels, LONGEST)
    if recompute:
        checkpoint_layers(model.layers)
    model.train()
    return model


def prepared(arguments: argparse.Namespace) -> tuple[TrainingStep, Targets]:
    """The step, and the micro-batch that it is timed on."""
    maybe_set_recommended_wired_limit()
    mx.random.seed(0)
    if arguments.limit_gb:
        mx.set_memory_limit(int(arguments.limit_gb * 1e9))
    model = model_of(
        arguments.shape,
        arguments.rank,
        recompute=arguments.recompute,
        product=arguments.product,
        together=arguments.together,
        kernels=arguments.kernels,
    )
    dropout = DropoutKey()
    step = TrainingStep(
        model, optim.AdamW(1e-5), activations=activation_type(model), dropout=dropout, compiled=not on_cpu(),
        joining="gradients" in arguments.kernels,
    )  # fmt: skip
    shape = (arguments.rows, arguments.width + 1)
    return step, Targets.of(
        np.random.default_rng(0).integers(5, 32000, shape), np.ones(shape, bool), GRID["cpu" if on_cpu() else "cuda"]
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second and peak memory of the step."""
    step, targets = prepared(arguments)
    mx.reset_peak_memory()
    times, thought = [], []
    for _ in range(arguments.steps):
        started, busy = time.perf_counter(), time.thread_time()
        batch = step.micro_batch(targets, mx.random.key(0))
        step.update()
        times.append(time.perf_counter() - started)
        thought.append(time.thread_time() - busy)
    timed = sorted(times[arguments.steps // 3 :])
    return {
        "trainer": "qlorad", "shape": arguments.shape, "width": arguments.width, "rows": arguments.rows,
        "recompute": arguments.recompute, "product": arguments.product, "together": arguments.together,
        "kernels": arguments.kernels,
        "limit_gb": arguments.limit_gb,
        "active_gb": round(mx.get_active_memory() / 1e9, 2),
        "tokens_per_s": round(batch.count / timed[len(timed) // 2]),
        "peak_gb": round(mx.get_peak_memory() / 1e9, 2), "loss": round(batch.loss / batch.count, 4),
        "slowest_s": round(timed[-1], 4), "fastest_s": round(timed[0], 4), "first_s": round(times[0], 1),
        "processor_s": round(sorted(thought)[len(thought) // 2], 4),
    }  # fmt: skip


def arguments_of(description: str | None) -> argparse.ArgumentParser:
    """What a micro-batch is made of, on the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--width", type=int, default=512, help="inputs a row")
    parser.add_argument("--rows", type=int, default=1, help="rows a micro-batch")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing of every layer")
    parser.add_argument("--product", choices=["quantized", "dequantized", "kept"], default="quantized")
    parser.add_argument("--together", action="store_true", help="layers that read the same input compute as one")
    parser.add_argument("--kernels", nargs="*", choices=own_kernels.PAIRS, default=[], help="our own, on CUDA")
    parser.add_argument("--limit-gb", type=float, default=None, help="MLX's memory limit, 10^9 bytes")
    return parser


if __name__ == "__main__":
    parser = arguments_of(__doc__)
    parser.add_argument("--steps", type=int, default=12)
    print(json.dumps(measure(parser.parse_args())))
