"""What a base model and the same model with a run's adapters say: `python -P -m qlora_engine.training.answer`.

Reads the fields of `Question` from standard input as one JSON object. Prints one JSON object a line for each prompt,
`{"prompt": …, "base": …, "adapted": …, "weights": …}`, or one error as `QloradError.as_dict` gives it. Whoever starts
it holds the GPU lock and hands it on as an open descriptor.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.sample_utils import make_sampler

from qlora_engine.job.datafiles import DataFormat
from qlora_engine.job.errors import DataRejected, Exit, QloradError
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.training import runtime
from qlora_engine.training.best import save_best
from qlora_engine.training.model import Base, load_base, put_adapters
from qlora_engine.training.samples import Prompt, asked, generate

WITHOUT_BEST = "Leave --best away: then the run's adapters answer."


@dataclass(frozen=True)
class Question:
    """What is asked of both models.

    Attributes:
        run: a run folder that has adapters.
        max_tokens: of each answer.
        temp: 0 takes the likeliest token each time.
        seed: of the draws when `temp` is above 0; both models draw with the same.
        best: ask the checkpoint of the lowest validation loss instead of `adapters/`.
    """

    run: Path
    prompts: list[str]
    max_tokens: int
    temp: float
    seed: int
    best: bool


def main() -> int:
    """Answer what standard input asks. Returns the exit code."""
    out = sys.stdout
    try:
        # What libraries print must not mix with the lines that a program reads.
        with contextlib.redirect_stdout(sys.stderr):
            for line in answers(Question(**_parsed(json.load(sys.stdin)))):
                out.write(json.dumps(line) + "\n")
                out.flush()
    except QloradError as error:
        out.write(json.dumps(error.as_dict()) + "\n")
        return int(error.exit_code)
    return int(Exit.OK)


def answers(question: Question) -> Iterator[dict[str, str]]:
    """Each prompt with both models' answers, and what the adapted one's weights are from.

    Raises:
        ModelRejected: the model or the adapters cannot be loaded.
        WrongState: the best checkpoint is asked for, and there is none.
        DataRejected: the chat template does not take a prompt.
    """
    run = RunFolder(question.run)
    job = ResolvedJob.needed(run.spec)
    base = load_base(job)
    base.model.eval()
    kind = _format_of(job, run)
    prompts = [_as_trained(text, kind, base) for text in question.prompts]
    before = [_answer(base, prompt, question) for prompt in prompts]
    with tempfile.TemporaryDirectory(prefix="qlora-answer-") as folder:
        weights = save_best(run, job, Path(folder), otherwise=WITHOUT_BEST) if question.best else run.adapters.name
        put_adapters(base, Path(folder) if question.best else run.adapters)
        for prompt, without in zip(prompts, before, strict=True):
            adapted = _answer(base, prompt, question)
            yield {"prompt": prompt.text, "base": without, "adapted": adapted, "weights": weights}


def _parsed(request: dict[str, Any]) -> dict[str, Any]:
    return {**request, "run": Path(request["run"])}


def _format_of(job: ResolvedJob, run: RunFolder) -> DataFormat:
    """The form of the job's training rows; a run on the hub's data that does not tell is taken for conversations."""
    if job.data:
        return job.data["train"].format
    return DataFormat(runtime.recorded(run, runtime.FORMAT) or DataFormat.CHAT)


def _as_trained(text: str, kind: DataFormat, base: Base) -> Prompt:
    try:
        return asked(text, base.tokenizer, kind)
    except DataRejected as error:
        raise DataRejected(
            error.what,
            where=str(base.path),
            remedy="Ask without it: python -m mlx_lm generate --ignore-chat-template, with --adapter-path.",
        ) from error


def _answer(base: Base, prompt: Prompt, question: Question) -> str:
    mx.random.seed(question.seed)
    sampler = make_sampler(question.temp) if question.temp > 0 else None
    tokens = list(generate(base.model, base.tokenizer, prompt, question.max_tokens, sampler))
    return str(base.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


if __name__ == "__main__":
    sys.exit(main())
