"""Answers of the base and of the adapted model, side by side: `python -P -m qlora_engine.training.answer …`.

Reads one prompt a line from a JSON Lines file ({"prompt": "…"}) and prints one JSON object for each:
{"prompt": "…", "base": "…", "adapted": "…"}. Greedy, so the same prompt gives the same answer.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_lm.tuner.utils import load_adapters

from qlora_engine.job import lock
from qlora_engine.job.datafiles import read_rows
from qlora_engine.job.errors import DataRejected, GpuBusy, ModelRejected, QloradError
from qlora_engine.settings import EngineSettings
from qlora_engine.training.model import Base, load_folder
from qlora_engine.training.samples import asked, generate


def main() -> int:
    """Answer every prompt twice."""
    arguments = _parse()
    try:
        settings = EngineSettings.read()
        prompts = [_prompt(row, arguments.prompts, line) for line, row in read_rows(arguments.prompts)]
        holder = {"pid": os.getpid(), "job": "answers", "attempt": 0}
        with lock.held(settings.gpu_lock_path, holder, wait=arguments.wait):
            for prompt, base, adapted in answers(arguments.model, arguments.adapter, prompts, arguments.max_tokens):
                print(json.dumps({"prompt": prompt, "base": base, "adapted": adapted}), flush=True)  # noqa: T201
    except lock.LockHeld as error:
        busy = GpuBusy("Another process holds the GPU.", where=str(error), remedy="Wait for it and try again.")
        print(busy, file=sys.stderr)  # noqa: T201
        return busy.exit_code
    except QloradError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


def answers(model: Path, adapter: Path, prompts: Sequence[str], max_tokens: int) -> list[tuple[str, str, str]]:
    """Each prompt with the base model's answer and the adapted model's.

    Raises:
        ModelRejected: the model or the adapters cannot be loaded.
    """
    base = load_folder(model, str(model), quantize=False, dequantize=True)
    before = [_answer(base, prompt, max_tokens) for prompt in prompts]
    try:
        load_adapters(base.model, str(adapter))
    except (OSError, ValueError, KeyError) as error:
        raise ModelRejected(
            f"The adapters cannot be loaded: {error}", where=str(adapter), remedy="Name a run's adapters/ folder."
        ) from None
    base.model.eval()
    after = [_answer(base, prompt, max_tokens) for prompt in prompts]
    return list(zip(prompts, before, after, strict=True))


def _answer(base: Base, prompt: str, max_tokens: int) -> str:
    tokens = list(generate(base.model, base.tokenizer, asked(prompt, base.tokenizer), max_tokens))
    return str(base.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def _prompt(row: dict[str, object], path: Path, line: int) -> str:
    prompt = row.get("prompt")
    if not isinstance(prompt, str):
        raise DataRejected(
            f"Row {line} of {path.name} has no text in `prompt`.",
            where=f"{path}, line {line}",
            remedy='Write {"prompt": "…"}.',
        )
    return prompt


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="qlora_engine.training.answer", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--max-tokens", type=int, default=60)
    parser.add_argument("--wait", type=float, default=600.0, help="seconds to wait for the GPU")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
