"""docs/choosing-a-model.md: which model a machine has room for, by the estimate that admission makes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from qlora_client.first_job import FITTINGS
from qlora_engine.job.preflight.backends import BACKENDS
from qlora_engine.job.preflight.batch import Batch
from qlora_engine.job.preflight.judgement import SURE
from qlora_engine.job.preflight.memory import GIGA, estimate, weight_bytes
from qlora_engine.job.preflight.shape import ModelShape
from qlora_engine.job.spec import JobSpec
from reference.words import code, table

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)


@dataclass(frozen=True)
class Model:
    """The numbers of a published config.json that memory depends on."""

    name: str
    family: str
    hidden: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool = False

    def shape(self, bits: int = 4) -> ModelShape:
        """With its weights quantized in groups of 64, as mlx-community does."""
        return ModelShape.of({
            "model_type": self.family, "hidden_size": self.hidden, "num_hidden_layers": self.layers,
            "intermediate_size": self.mlp, "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "head_dim": self.head, "vocab_size": self.vocabulary, "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16", "quantization": {"group_size": 64, "bits": bits},
        })  # fmt: skip


MODELS = (
    Model("SmolLM2 135M", "llama", 576, 30, 1536, 9, 3, 64, 49152, tied=True),
    Model("Qwen3 0.6B", "qwen3", 1024, 28, 3072, 16, 8, 128, 151936, tied=True),
    Model("Llama 3.2 1B", "llama", 2048, 16, 8192, 32, 8, 64, 128256, tied=True),
    Model("Qwen3 1.7B", "qwen3", 2048, 28, 6144, 16, 8, 128, 151936, tied=True),
    Model("Llama 3.2 3B", "llama", 3072, 28, 8192, 24, 8, 128, 128256, tied=True),
    Model("Qwen3 4B", "qwen3", 2560, 36, 9728, 32, 8, 128, 151936, tied=True),
    Model("Mistral 7B v0.3", "mistral", 4096, 32, 14336, 32, 8, 128, 32768),
    Model("Llama 3.1 8B", "llama", 4096, 32, 14336, 32, 8, 128, 128256),
    Model("Qwen3 8B", "qwen3", 4096, 36, 12288, 32, 8, 128, 151936),
    Model("Qwen3 14B", "qwen3", 5120, 40, 17408, 40, 8, 128, 151936),
    Model("Mistral Small 24B", "mistral", 5120, 40, 32768, 32, 8, 128, 131072),
    Model("Qwen3 32B", "qwen3", 5120, 64, 25600, 64, 8, 128, 151936),
    Model("Llama 3.3 70B", "llama", 8192, 80, 28672, 64, 8, 128, 128256),
)
# Memory of a Mac in 2^30 bytes, and the share of it that Metal recommends a program to use.
MACS = {8: 2 / 3, 16: 2 / 3, 32: 2 / 3, 64: 3 / 4}

HEAD = """# Pick a model for your memory

A job needs room for the model in 4 bits and for what training keeps of each row. `qlora init` proposes a model of
Qwen3 for the machine that it runs on, and rows of 512 tokens:
"""

BETWEEN = """
Smaller is faster, and is enough for much: a format, a tone, one kind of answer. Begin with a model that leaves half
of the memory free, and take a larger one when the answers of `qlora try` are not good enough.

## What fits

The longest rows that a Mac has room for, one at a time (`batch_size: 1`), with `grad_checkpoint: true`, adapters of
rank 8 on all linear layers of the last 16 layers, and 15% to spare, looked at up to 32,768 tokens:
"""

NEEDS = """
## What it needs

In GB (10^9 bytes), with the same adapters; the weights are a part of each. What counts is how many tokens a
micro-batch has: four rows of 512 need as much as one of 2,048.
"""

TAIL = """
On a GPU training computes layers again by itself when memory would not do (`recomputation.chosen`), so the last
column is what a job comes down to without a change of its file, and more time.

## Ask before you submit

```sh
qlora models ls                                                       # models that are here
qlora validate job.yaml --set batch_size=1 --set max_seq_length=1024  # what this job would need so, by parts
```

`qlora validate` knows your rows and your machine, which these tables do not. It says the smallest change that would
make a job fit, and so does the daemon of a job that it refuses. What each key costs, in the order in which to try
them: `grad_checkpoint: true` costs time alone; a smaller `batch_size` with more `grad_accumulation_steps` learns the
same; a lower `max_seq_length` and fewer `num_layers` learn less.

A model may be the name of one on the hub (`mlx-community/Qwen3-4B-4bit`), a folder with a model in mlx_lm's format,
or one that was added: `qlora models add smollm2`, or `qlora models add FILE.gguf` for a llama model in Q4_0, Q4_1 or
Q8_0. One that is not quantized is quantized when it is loaded, to 4 bits in groups of 64, unless all of its weights
are trained (`fine_tune_type: full`).

## What these numbers are

Estimates, made by the code that judges every job at admission, from the widths in each model's published
`config.json`; this page is written by `make docs`. On two CPU cores and on an H100 the same arithmetic was within 10%
of what was [measured](memory.md#measured). **No Mac has been measured**: Metal's constants are those of CUDA. What a
Mac recommends to a program, two thirds of its memory up to 32 GB and three quarters above, is what users report;
`qlora doctor` says what yours does. Other programs take from the same memory.
"""


def as_markdown() -> str:
    """The page."""
    lines = [HEAD, *table(("memory", "model", "rows at once"), _proposed()), BETWEEN]
    lines += table(("model", *(f"{size} GB" for size in MACS)), ([model.name, *_longest(model)] for model in MODELS))
    lines += [NEEDS]
    lines += table(
        ("model", "parameters", "weights", "512 tokens", "2,048 tokens", "2,048, `grad_checkpoint: true`"),
        ([model.name, *_needs(model)] for model in MODELS),
    )
    return "\n".join([*lines, TAIL])


def _proposed() -> list[tuple[str, str, str]]:
    bounds = itertools.pairwise([0.0, *(fitting.up_to for fitting in FITTINGS)])
    return [
        (_between(least, most), code(fitting.model), str(fitting.batch_size))
        for (least, most), fitting in zip(bounds, FITTINGS, strict=True)
    ]


def _between(least: float, most: float) -> str:
    if not least:
        return f"under {most:g} GB"
    return f"from {least:g} GB" if most == float("inf") else f"{least:g} to {most:g} GB"


def _longest(model: Model) -> list[str]:
    limits = (size * 2**30 * share for size, share in MACS.items())
    return [_longest_in(model, limit) for limit in limits]


def _longest_in(model: Model, limit: float) -> str:
    fitting = [length for length in LENGTHS if _need(model, 1, length, again=True) * (1 + SURE) <= limit]
    return f"{fitting[-1]:,}" if fitting else "–"


def _needs(model: Model) -> list[str]:
    shape = model.shape()
    weights = weight_bytes(JobSpec(), shape, dequantized=False)
    sizes = (weights, _need(model, 1, 512), _need(model, 1, 2048), _need(model, 1, 2048, again=True))
    return [f"{shape.parameters / GIGA:.2g} B", *(f"{size / GIGA:.1f}" for size in sizes)]


def _need(model: Model, rows: int, length: int, *, again: bool = False) -> float:
    """Bytes for rows that are full of targets."""
    spec = JobSpec(batch_size=rows, max_seq_length=length, grad_checkpoint=again)
    batch = Batch.widest(spec, rows=rows, longest=length, targets=length, backend="metal")
    return estimate(spec, model.shape(), batch, BACKENDS["metal"], dequantized=False).total
