"""From rows of text to tokens and targets: templates rendered row by row, tokens made for many rows at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper
from numpy.typing import NDArray
from tokenizers import Encoding
from transformers import PreTrainedTokenizerFast

from qlora_engine.job.datafiles import DataFormat
from qlora_engine.job.errors import DataRejected
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.unforeseen import said_by

ENCODING = 2  # part of the key of kept tokens: raise it whenever this file makes other tokens or targets of a row
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
                f"Row {number} cannot be turned into tokens: {said_by(error)}.",
                where=f"{source}, line {number}",
                remedy="Check the row's roles and contents against the model's chat template.",
            ) from None
        yield encoded


def _encode(
    rows: Sequence[Mapping[str, Any]], kind: DataFormat, spec: JobSpec, tokenizer: TokenizerWrapper
) -> list[Encoded]:
    if kind is DataFormat.TEXT:
        texts = _tokens(tokenizer, [row[spec.text_feature] for row in rows])
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
    turn is not a target, and the last one counts from where the renderings part. A token that has characters
    on both sides of a turn's border is a target.
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

    def encoded(self, rendered: Sequence[_Rendered]) -> Encoded:
        """Its tokens and targets, from its parts."""
        whole, prefixes = rendered[0], iter(rendered[1:])
        tokens = whole.tokens
        if not self.masked:
            return Encoded(tokens, np.ones(len(tokens), np.bool_))
        supervised = np.zeros(len(tokens), np.bool_)
        for index in _answers(self.messages):
            before = next(prefixes)
            if index == len(self.messages) - 1:
                supervised[_common(tokens, before.tokens) :] = True
            else:
                supervised[_between(whole, before, next(prefixes))] = True
        return Encoded(tokens, supervised)


def _answers(messages: Conversation) -> list[int]:
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


class _Rendered(NamedTuple):
    """A part of a conversation: its tokens, and where the tokenizer tells it, its text and what each token covers."""

    tokens: list[int]
    text: str | None = None
    encoding: Encoding | None = None

    def spans(self) -> NDArray[np.int64] | None:
        """(T, 2): the characters that each token covers, without a gap; None where that is not known."""
        if self.encoding is None:
            return None
        found = np.array(self.encoding.offsets, np.int64).reshape(-1, 2)
        ends = np.maximum.accumulate(found[:, 1])
        # Byte-level tokenizers may leave the space before a word out of its token's offsets: it is in no other's.
        starts = np.minimum(found[:, 0], np.concatenate([[0], ends[:-1]]))
        return np.stack([starts, ends], axis=1)


def _between(whole: _Rendered, before: _Rendered, through: _Rendered) -> slice | NDArray[np.bool_]:
    """Which tokens of the whole are of the turn between two of its prefixes; none where they are no prefixes.

    Tokens may merge across a turn's border, or split otherwise when more text follows: then the tokens of a prefix do
    not begin those of the whole, though its text begins the whole's.
    """
    start, end = len(before.tokens), len(through.tokens)
    if whole.tokens[:end] == through.tokens and whole.tokens[:start] == before.tokens:
        return slice(start, end)
    if whole.text is None or before.text is None or through.text is None:
        return slice(0)
    if not (whole.text.startswith(before.text) and whole.text.startswith(through.text)):
        return slice(0)
    spans = whole.spans()
    if spans is None:
        return slice(0)
    reached: NDArray[np.bool_] = (spans[:, 1] > len(before.text)) & (spans[:, 0] < len(through.text))
    return reached


def _renderings(chats: Sequence[_Chat], tokenizer: TokenizerWrapper) -> list[_Rendered]:
    """Every part of every conversation, one after the other; of no turns there are no tokens."""
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
    found = _together(tokenizer, rendered) if text else (_Rendered(list(tokens)) for tokens in rendered)
    return [next(found) if part.turns else _Rendered([], "") for _, part in wanted]


def _takes_many(tokenizer: TokenizerWrapper) -> bool:
    """Whether many texts in one call surely give what each gives alone: the stock tokenizer in Rust."""
    stock, found = PreTrainedTokenizerFast, type(tokenizer._tokenizer)
    names = ("encode", "apply_chat_template", "__call__")
    return issubclass(found, stock) and all(getattr(found, name) is getattr(stock, name) for name in names)


def _tokens(tokenizer: TokenizerWrapper, texts: list[str]) -> list[list[int]]:
    if not _takes_many(tokenizer):
        return [list(tokenizer.encode(text)) for text in texts]
    found: list[list[int]] = _many(tokenizer, texts, special=True)["input_ids"]
    return found


def _together(tokenizer: TokenizerWrapper, texts: list[str]) -> Iterator[_Rendered]:
    many = _many(tokenizer, texts, special=False) if texts else {"input_ids": []}
    encodings = getattr(many, "encodings", None) or [None] * len(texts)
    return map(_Rendered, many["input_ids"], texts, encodings)


def _many(tokenizer: TokenizerWrapper, texts: list[str], *, special: bool) -> Any:  # transformers' BatchEncoding
    return tokenizer._tokenizer(
        texts, add_special_tokens=special, return_attention_mask=False, return_token_type_ids=False
    )


def _common(left: list[int], right: list[int]) -> int:
    """Length of the common prefix."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
