"""From rows of text to tokens and targets: templates rendered row by row, tokens made for many rows at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from qlora_engine.job.datafiles import DataFormat
from qlora_engine.job.errors import DataRejected
from qlora_engine.job.spec import JobSpec

ENCODING = 1  # part of the key of kept tokens: raise it whenever this file makes other tokens or targets of a row
DECIDES = ("prompt_feature", "completion_feature", "chat_feature", "text_feature", "mask_prompt")  # keys of a job
TOGETHER = 128  # rows whose texts are tokenized in one call, on all cores

Row = tuple[int, Mapping[str, Any]]  # its line number, and what is there
Conversation = list[dict[str, Any]]


class Encoded(NamedTuple):
    """One whole row: its tokens, and bool (T,) True where one is a target; the first never is."""

    tokens: list[int]
    supervised: NDArray[np.bool_]


def encode_rows(
    rows: Iterable[Row], source: str, kind: DataFormat, spec: JobSpec, tokenizer: TokenizerWrapper
) -> Iterator[Encoded]:
    """Tokenize numbered rows, in their order; `source` is what an error calls them.

    Raises:
        DataRejected: the tokenizer has no chat template, or cannot render a row; with its line.
    """
    if kind is not DataFormat.TEXT and not tokenizer.has_chat_template:
        raise DataRejected(
            "The model's tokenizer has no chat template, which this data format needs.",
            where=source,
            remedy=f"Use an instruction-tuned model, or write rows of plain `{spec.text_feature}`.",
        )
    for batch in _in_batches(rows, TOGETHER if _takes_many(tokenizer) else 1):
        try:
            yield from _encode([row for _, row in batch], kind, spec, tokenizer)
        except Exception:  # noqa: BLE001  # one of many: each by itself says which
            yield from _one_by_one(batch, source, kind, spec, tokenizer)


def _in_batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _one_by_one(
    batch: Sequence[Row], source: str, kind: DataFormat, spec: JobSpec, tokenizer: TokenizerWrapper
) -> Iterator[Encoded]:
    for number, row in batch:
        try:
            (encoded,) = _encode([row], kind, spec, tokenizer)
        except Exception as error:  # noqa: BLE001  # a template may raise anything about a row it cannot render
            raise DataRejected(
                f"Row {number} cannot be turned into tokens: {error}.",
                where=f"{source}, line {number}",
                remedy="Check the row's roles and contents against the model's chat template.",
            ) from None
        yield encoded


def _encode(
    rows: Sequence[Mapping[str, Any]], kind: DataFormat, spec: JobSpec, tokenizer: TokenizerWrapper
) -> list[Encoded]:
    if kind is DataFormat.TEXT:
        texts = _tokens(tokenizer, [row[spec.text_feature] for row in rows], special=True)
        found = [Encoded(tokens, np.ones(len(tokens), np.bool_)) for tokens in map(_ended(tokenizer), texts)]
    else:
        chats = [_Chat.of(row, kind, spec) for row in rows]
        rendered = iter(_renderings(chats, tokenizer))
        found = [chat.encoded([next(rendered) for _ in chat.parts]) for chat in chats]
    for row in found:
        row.supervised[:1] = False  # nothing predicts it
    return found


def _ended(tokenizer: TokenizerWrapper) -> Any:  # a function from tokens to tokens
    end = tokenizer.eos_token_id

    def ended(tokens: list[int]) -> list[int]:
        return tokens if end is None or tokens[-1:] == [end] else [*tokens, end]

    return ended


class _Part(NamedTuple):
    """The first turns of a conversation, to be rendered."""

    turns: int
    generation: bool  # with what asks the model for an answer


class _Chat(NamedTuple):
    """A conversation, and which parts of it tell where its targets are.

    A turn is found by rendering the conversation up to its start and up to its end. Some templates rewrite
    earlier turns (they drop thinking blocks, say); where the part is then no prefix of the whole, an earlier
    turn is not a target, and the last one counts from where the renderings part.
    """

    messages: Conversation
    tools: Any
    masked: bool
    parts: list[_Part]  # the whole first; then of each answer its start and, but for the last turn, its end

    @classmethod
    def of(cls, row: Mapping[str, Any], kind: DataFormat, spec: JobSpec) -> _Chat:
        if kind is DataFormat.COMPLETION:
            messages = [
                {"role": "user", "content": row[spec.prompt_feature]},
                {"role": "assistant", "content": row[spec.completion_feature]},
            ]
        else:
            messages = row[spec.chat_feature]
        parts = [_Part(len(messages), generation=False)]
        if spec.mask_prompt:
            for index in _answers(messages):
                parts.append(_Part(index, generation=True))
                if index < len(messages) - 1:
                    parts.append(_Part(index + 1, generation=False))
        return cls(messages, row.get("tools"), spec.mask_prompt, parts)

    def encoded(self, rendered: Sequence[list[int]]) -> Encoded:
        """Its tokens and targets, from the tokens of its parts."""
        tokens, prefixes = rendered[0], iter(rendered[1:])
        if not self.masked:
            return Encoded(tokens, np.ones(len(tokens), np.bool_))
        supervised = np.zeros(len(tokens), np.bool_)
        for index in _answers(self.messages):
            before = next(prefixes)
            start = _common(tokens, before)
            if index == len(self.messages) - 1:
                supervised[start:] = True
                continue
            through = next(prefixes)
            if start == len(before) and _common(tokens, through) == len(through):
                supervised[start : len(through)] = True
        return Encoded(tokens, supervised)


def _answers(messages: Conversation) -> list[int]:
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


def _renderings(chats: Sequence[_Chat], tokenizer: TokenizerWrapper) -> list[list[int]]:
    """The tokens of every part of every conversation, one after the other; of no turns there are none."""
    wanted = [(chat, part) for chat in chats for part in chat.parts]
    text = _takes_many(tokenizer)
    rendered = [
        tokenizer.apply_chat_template(
            chat.messages[: part.turns],
            tools=chat.tools,
            add_generation_prompt=part.generation,
            return_dict=False,
            tokenize=not text,
        )
        for chat, part in wanted
        if part.turns
    ]
    found = iter(_tokens(tokenizer, rendered, special=False) if text else map(list, rendered))
    return [next(found) if part.turns else [] for _, part in wanted]


def _takes_many(tokenizer: TokenizerWrapper) -> bool:
    """Whether many texts in one call surely give what each gives alone: the stock tokenizer in Rust."""
    stock, found = PreTrainedTokenizerFast, type(tokenizer._tokenizer)
    names = ("encode", "apply_chat_template", "__call__")
    return issubclass(found, stock) and all(getattr(found, name) is getattr(stock, name) for name in names)


def _tokens(tokenizer: TokenizerWrapper, texts: list[str], *, special: bool) -> list[list[int]]:
    if not _takes_many(tokenizer):
        return [list(tokenizer.encode(text, add_special_tokens=special)) for text in texts]
    many = tokenizer._tokenizer(
        texts, add_special_tokens=special, return_attention_mask=False, return_token_type_ids=False
    )
    found: list[list[int]] = many["input_ids"]
    return found


def _common(left: list[int], right: list[int]) -> int:
    """Length of the common prefix."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
