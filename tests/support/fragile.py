"""A model that computes NaN, infinity and absurd numbers when it meets certain tokens, and rows that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from qlora_engine.training.batches import Plan
from qlora_engine.training.data import Document
from qlora_engine.training.dropout import DropoutKey
from support.rig import KEYS, document
from support.small import VOCABULARY, with_adapters

NAN = 60  # its embedding is NaN
INFINITE = 61  # as a target it has an infinite loss
HUGE = 62  # as a target it has a loss of some 10^9
STEEP = 63  # as a target it has an ordinary loss with a gradient that is not finite
UNKNOWN = VOCABULARY  # the model does not know it

PLACES = {NAN: "loss", INFINITE: "loss", HUGE: "loss", STEEP: "gradient", UNKNOWN: "batch"}


class Layer(nn.Module):
    """A residual layer, and a feature of its own that is 0 until it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32, bias=False), nn.Linear(32, 16, bias=False)
        self.silent = nn.Linear(16, 1, bias=False)
        self.silent.weight = mx.zeros((1, 16))


class Fragile(nn.Module):
    """Tokens under 60 are ordinary.

    The output layer sees a 1, the hidden features and the silent one. A row of it that has nothing but a number at the
    1 gives its token that logit everywhere: negative and large, it is never likely, and as a target costs that much.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 16)
        self.embed.weight = mx.random.normal((VOCABULARY, 16))
        self.embed.weight[NAN] = mx.nan
        self.layers = [Layer()]
        self.lm_head = nn.Linear(18, VOCABULARY, bias=False)
        self.lm_head.weight[:, mx.array([0, 17])] = 0.0
        for token, size in ((INFINITE, -mx.inf), (HUGE, -2e10), (STEEP, -1000.0)):
            self.lm_head.weight[token] = 0.0
            self.lm_head.weight[token, 0] = size
        self.lm_head.weight[STEEP, 17] = 1e25

    def __call__(self, tokens: mx.array) -> mx.array:
        h = self.embed(tokens)
        for layer in self.layers:
            silent = layer.silent(h)
            h = h + layer.down(nn.relu(layer.up(h)))
        return self.lm_head(mx.concatenate([mx.ones_like(silent), h, silent], axis=-1))


def fragile_model(source: DropoutKey) -> nn.Module:
    """A `Fragile` with adapters."""
    mx.random.seed(0)
    model = Fragile()
    model.freeze()
    with_adapters(model, dropout=0.1, source=source)
    model.layers[0].silent.lora_b[:] = 0.0
    mx.eval(model.parameters())
    return model


def rows_to_learn(count: int, seed: int = 0) -> list[Document]:
    """Each token is the next or the one after it in a cycle of 20: something to learn, down to a loss of ln 2."""
    draw = np.random.default_rng(seed)
    return [
        document(1 + (draw.integers(20) + draw.integers(1, 3, draw.integers(6, 11)).cumsum()) % 20)
        for _ in range(count)
    ]


def spoiled(rows: Iterable[Document], bad: Mapping[int, int]) -> list[Document]:
    """The rows with a bad token in the middle of some: row number to token."""
    made = list(rows)
    for row, token in bad.items():
        tokens = made[row].tokens.copy()
        tokens[len(tokens) // 2] = token
        made[row] = replace(made[row], tokens=tokens)
    return made


def spoiled_steps(rows: list[Document], keys: Mapping[str, Any], steps: Iterable[int], token: int) -> list[Document]:
    """The rows with a bad token in one row of each of these micro-batches, by step from 0."""
    batches = [rows for window in windows(rows, keys) for rows in window]
    return spoiled(rows, {batches[step][0]: token for step in steps})


def windows(rows: list[Document], keys: Mapping[str, Any]) -> list[tuple[tuple[int, ...], ...]]:
    """The row numbers of each micro-batch of each window of a job."""
    job = KEYS | dict(keys)
    plan = Plan.of(
        rows,
        batch_size=job["batch_size"],
        accumulation=job["grad_accumulation_steps"],
        seed=job.get("seed", 0),
        iters=job.get("iters", 1000),
        epochs=job["epochs"],
    )
    return [window.micro_batches for window in plan.windows(epoch=0, index=0, step=0)]
