"""Answers of a base model and of the same model with adapters, from a process that may import mlx."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qlora_engine import blas
from qlora_engine.job.errors import QloradError
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.text import plain, plain_lines

ANSWERER = "qlora_engine.training.answer"
MAX_TOKENS = 60


class NoAnswers(QloradError):
    """The models could not be asked."""


@dataclass(frozen=True)
class Answer:
    """One prompt and what both models say to it."""

    prompt: str
    base: str
    adapted: str


def ask_both(run: RunFolder, model: Path, prompts: Path, cpu_blas: str) -> list[Answer]:
    """Have the base model and the adapted one answer each prompt of a JSON-lines file.

    Raises:
        NoAnswers: the process that asks them failed.
    """
    command = [sys.executable, "-P", "-m", ANSWERER, "--model", str(model), "--adapter", str(run.adapters)]
    command += ["--prompts", str(prompts), "--max-tokens", str(MAX_TOKENS)]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | blas.training_environment(cpu_blas, run),
        check=False,
    )
    answers = [answer for line in done.stdout.splitlines() if (answer := _parse(line))]
    if done.returncode != 0 or not answers:
        said = plain_lines(done.stderr).strip().splitlines()
        raise NoAnswers(
            f"The models could not be asked (code {done.returncode}){': ' + plain(said[-1], 300) if said else ''}.",
            where=" ".join(command),
            remedy=f"The adapters are in {run.adapters} nevertheless. Run the command above to see all it says.",
        )
    return answers


def _parse(line: str) -> Answer | None:
    try:
        value = json.loads(line)
        return Answer(str(value["prompt"]), str(value["base"]), str(value["adapted"]))
    except (ValueError, KeyError, TypeError):
        return None  # a library that printed something
