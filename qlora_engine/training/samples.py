"""Answers before and after training, for a person to compare: the job's own prompts, answered greedily."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
from mlx import nn
from mlx_lm.generate import generate_step
from mlx_lm.tokenizer_utils import TokenizerWrapper

from qlora_engine.job.datafiles import DataFormat, Split, read_rows
from qlora_engine.job.errors import DataRejected
from qlora_engine.job.events import EventLog
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.unforeseen import said_by
from qlora_engine.training.hub_data import read_hub_rows
from qlora_engine.training.stop import StopRequest

MAX_TOKENS = 64  # of an answer
MAX_SECONDS = 60.0  # of all answers together; what is not finished then is cut
ROWS_LOOKED_AT = 20  # for each prompt that is wanted, since one that is too long is passed over
SHOWN = 4000  # characters of a text in an event

Turn = Mapping[str, Any]


@dataclass(frozen=True)
class Prompt:
    """What the model is asked.

    Attributes:
        text: for a person.
        tokens: for the model, the chat template applied.
        expected: the answer in the row of data; None for a prompt of the job file.
    """

    text: str
    tokens: list[int]
    expected: str | None = None


@dataclass(frozen=True)
class Answer:
    """What the model said, without special tokens and surrounding space."""

    prompt: Prompt
    text: str


def prompts_of(job: ResolvedJob, tokenizer: TokenizerWrapper, kind: DataFormat) -> list[Prompt]:
    """The prompts that `samples` asks for: as written there, or from the first rows of the validation data.

    Without validation data they come from the training data. Rows whose prompt does not fit into max_seq_length,
    or that the chat template cannot render without their last answer, are passed over.

    Args:
        kind: of the training rows; where they are plain text, what is written in `samples` is asked as it stands.

    Raises:
        DataRejected: a data file cannot be read, or the chat template takes no question of the job file.
    """
    spec = job.spec
    if isinstance(spec.samples, list):
        return [asked(text, tokenizer, kind) for text in spec.samples]
    found = (_prompt_of(row, kind, reading, tokenizer) for row, kind, reading in _rows(job))
    fitting = (prompt for prompt in found if prompt and 0 < len(prompt.tokens) <= spec.max_seq_length)
    return list(itertools.islice(fitting, spec.samples))


def asked(text: str, tokenizer: TokenizerWrapper, kind: DataFormat) -> Prompt:
    """A prompt in the form that the job's rows had: plain text stays plain, a question gets the chat template.

    Raises:
        DataRejected: the chat template does not take it.
    """
    if kind is DataFormat.TEXT or not tokenizer.has_chat_template:
        return Prompt(text, list(tokenizer.encode(text)))
    try:
        return Prompt(text, _rendered([{"role": "user", "content": text}], None, tokenizer))
    except Exception as error:
        raise DataRejected(
            f"The model's chat template does not take a question: {said_by(error)}.",
            where=f"samples: {text[:80]}",
            remedy="Set samples: 0, or a number to take the questions from the data.",
        ) from error


def answer(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompts: Sequence[Prompt],
    *,
    stop: StopRequest,
    when: Literal["before", "after"],
    log: EventLog,
    max_tokens: int = MAX_TOKENS,
) -> list[Answer] | None:
    """Answer every prompt and say each answer; None if a stop was asked for midway.

    Greedy and without dropout: no random state is read or changed, so training goes on as if nothing was asked.
    """
    answers = []
    deadline = time.monotonic() + MAX_SECONDS
    training = model.training
    model.eval()
    try:
        for prompt in prompts:
            tokens = generate(model, tokenizer, prompt, max_tokens)
            said = list(itertools.takewhile(lambda _: not stop.asked and time.monotonic() < deadline, tokens))
            if stop.asked:
                return None
            answers.append(Answer(prompt, tokenizer.decode(said, skip_special_tokens=True).strip()))
            _say(answers[-1], when, log)
    finally:
        model.train(training)
    return answers


def generate(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompt: Prompt,
    max_tokens: int,
    sampler: Callable[[mx.array], mx.array] | None = None,
) -> Iterator[int]:
    """The tokens of the answer, one at a time, up to the end that the model sets or `max_tokens`.

    Greedy without a `sampler`, which takes log-probabilities (1, V) to tokens (1,).

    mlx_lm's `stream_generate` would set the wired memory limit, which belongs to training here.
    """
    for token, _ in generate_step(mx.array(prompt.tokens), model, max_tokens=max_tokens, sampler=sampler):
        if token in tokenizer.eos_token_ids:
            return
        yield int(token)


def _say(answered: Answer, when: str, log: EventLog) -> None:
    expected = answered.prompt.expected
    log.emit(
        "sample.answered",
        when=when,
        prompt=answered.prompt.text[:SHOWN],
        answer=answered.text[:SHOWN],
        expected=None if expected is None else expected[:SHOWN],
    )


def _rows(job: ResolvedJob) -> Iterator[tuple[Mapping[str, Any], DataFormat, JobSpec]]:
    """The first rows with their format and the job whose feature names they follow."""
    count = job.spec.samples * ROWS_LOOKED_AT if isinstance(job.spec.samples, int) else 0
    if not job.data:
        yield from read_hub_rows(job.spec, count)
        return
    split: Split = "valid" if "valid" in job.data else "train"
    file = job.data[split]
    for _, row in itertools.islice(read_rows(Path(file.path)), count):
        yield row, file.format, job.spec


def _prompt_of(row: Mapping[str, Any], kind: DataFormat, spec: JobSpec, tokenizer: TokenizerWrapper) -> Prompt | None:
    if kind is DataFormat.TEXT:
        text = row[spec.text_feature]
        start = text[: max(1, len(text) // 3)]
        return Prompt(start, list(tokenizer.encode(start)), text[len(start) :])
    if kind is DataFormat.COMPLETION:
        turns: list[Turn] = [{"role": "user", "content": row[spec.prompt_feature]}]
        expected: str | None = row[spec.completion_feature]
    else:
        turns, expected = _before_last_answer(row[spec.chat_feature])
    try:
        tokens = _rendered(turns, row.get("tools"), tokenizer)
    except Exception:  # noqa: BLE001  # a template may raise anything about turns that it does not expect last
        return None
    return Prompt(_as_text(turns), tokens, expected)


def _before_last_answer(turns: Sequence[Turn]) -> tuple[list[Turn], str | None]:
    """A conversation up to its last assistant turn, and what that turn says."""
    answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not answers:
        return list(turns), None
    return list(turns[: answers[-1]]), _content(turns[answers[-1]])


def _rendered(turns: Sequence[Turn], tools: Any, tokenizer: TokenizerWrapper) -> list[int]:
    return list(tokenizer.apply_chat_template(list(turns), tools=tools, add_generation_prompt=True, return_dict=False))


def _as_text(turns: Sequence[Turn]) -> str:
    if len(turns) == 1 and turns[0]["role"] == "user":
        return _content(turns[0])
    return "\n".join(f"{turn['role']}: {_content(turn)}" for turn in turns)


def _content(turn: Turn) -> str:
    """A turn's content as text; parts that are no text, and calls of tools, as they are written."""
    content = turn.get("content")
    if isinstance(content, list):
        parts = (part.get("text", part) if isinstance(part, dict) else part for part in content)
        content = "\n".join(map(str, parts))
    return content or str(turn.get("tool_calls") or "")
