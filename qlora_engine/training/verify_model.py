"""Proves that a converted model folder works: mlx_lm loads it, it computes, its tokenizer keeps text.

Everything runs on the CPU, so that it needs no GPU lock and disturbs no training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx

from qlora_engine.job.errors import ConversionRefused
from qlora_engine.job.unforeseen import said_by

SENTENCE = "The 12 quick brown foxes' 345 jumps,  naïve – über 漢字 🦊!\n\tx = y_2 + 1;"


def verify(folder: Path, *, probe: tuple[str, str] | None = None) -> None:
    """Load the folder as mlx_lm does and use it once.

    Args:
        folder: the model.
        probe: a text and the text that the model must go on with, greedily.

    Raises:
        ConversionRefused: with what does not work.
    """
    from mlx_lm import load  # noqa: PLC0415  # after the converter has settled its environment

    with mx.stream(mx.cpu):
        try:
            model, tokenizer = load(str(folder))[:2]
        except Exception as error:  # whatever mlx_lm meets in a folder made from a foreign file
            raise _failed(folder, f"mlx_lm cannot load it: {said_by(error)}") from error
        _check_tokenizer(folder, tokenizer)
        _check_forward(folder, model, tokenizer, probe)


def _check_tokenizer(folder: Path, tokenizer: Any) -> None:  # transformers is not typed
    ids = tokenizer.encode(SENTENCE, add_special_tokens=False)
    text = tokenizer.decode(ids)
    if text != SENTENCE:
        raise _failed(folder, f"the tokenizer turns {SENTENCE!r} into {text!r}")
    if tokenizer.chat_template is None:
        return
    try:
        shown = tokenizer.apply_chat_template(
            [{"role": "user", "content": SENTENCE}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template is a program from the file
        raise _failed(folder, f"its chat template fails: {said_by(error)}") from error
    if SENTENCE.strip() not in shown:
        raise _failed(folder, "its chat template leaves out what the user says")


def _check_forward(folder: Path, model: Any, tokenizer: Any, probe: tuple[str, str] | None) -> None:
    prompt = probe[0] if probe else SENTENCE
    ids = tokenizer.encode(prompt)[:8]  # a CPU takes its time with a large model
    logits = model(mx.array([ids]))[0, -1].astype(mx.float32)
    if not mx.isfinite(logits).all().item():
        raise _failed(folder, "its logits are not finite")
    if probe is None:
        return
    answer = tokenizer.decode([mx.argmax(logits).item()])
    if answer != probe[1]:
        raise _failed(folder, f"it goes on {prompt!r} with {answer!r} instead of {probe[1]!r}")


def _failed(folder: Path, what: str) -> ConversionRefused:
    return ConversionRefused(
        f"The converted model does not work: {what}.",
        where=str(folder),
        remedy="Take another file of this model, or the model in MLX format, and give its folder.",
    )
