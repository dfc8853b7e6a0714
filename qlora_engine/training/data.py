"""From rows of text to documents: tokens, and which of them are targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper
from numpy.typing import NDArray

from qlora_engine.job.datafiles import DataFormat, read_rows
from qlora_engine.job.errors import DataRejected
from qlora_engine.job.spec import JobSpec

ROWS_A_BEAT = 1000
Row = tuple[int, Mapping[str, Any]]


@dataclass(frozen=True)
class Document:
    """One row of data.

    Attributes:
        tokens: int32 (T,).
        supervised: bool (T,), True where the token is a target; never at 0, which nothing predicts.
        cut: tokens that did not fit into max_seq_length.
    """

    tokens: NDArray[np.int32]
    supervised: NDArray[np.bool_]
    cut: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def targets(self) -> int:
        """How many tokens are learned."""
        return int(self.supervised.sum())


def read_documents(
    path: Path, kind: DataFormat, spec: JobSpec, tokenizer: TokenizerWrapper, beat: Callable[[], None] = lambda: None
) -> list[Document]:
    """Tokenize every row of a data file; `beat` is called now and then.

    Raises:
        DataRejected: the tokenizer cannot render a row; with its line.
    """
    return tokenize(_beating(read_rows(path), beat), str(path), kind, spec, tokenizer)


def _beating(rows: Iterable[Row], beat: Callable[[], None]) -> Iterator[Row]:
    for count, row in enumerate(rows):
        if count % ROWS_A_BEAT == 0:
            beat()
        yield row


def tokenize(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    source: str,
    kind: DataFormat,
    spec: JobSpec,
    tokenizer: TokenizerWrapper,
) -> list[Document]:
    """Tokenize numbered rows; `source` is what an error calls them."""
    if kind is not DataFormat.TEXT and not tokenizer.has_chat_template:
        raise DataRejected(
            "The model's tokenizer has no chat template, which this data format needs.",
            where=source,
            remedy=f"Use an instruction-tuned model, or write rows of plain `{spec.text_feature}`.",
        )
    documents = []
    for number, row in rows:
        try:
            tokens, supervised = _encode(row, kind, spec, tokenizer)
        except Exception as error:  # noqa: BLE001  # a template may raise anything about a row it cannot render
            raise DataRejected(
                f"Row {number} cannot be turned into tokens: {error}.",
                where=f"{source}, line {number}",
                remedy="Check the row's roles and contents against the model's chat template.",
            ) from None
        documents.append(_fit(tokens, supervised, spec.max_seq_length))
    return documents


def _encode(
    row: Mapping[str, Any], kind: DataFormat, spec: JobSpec, tokenizer: TokenizerWrapper
) -> tuple[list[int], NDArray[np.bool_]]:
    if kind is DataFormat.TEXT:
        tokens = list(tokenizer.encode(row[spec.text_feature]))
        if tokenizer.eos_token_id is not None and (not tokens or tokens[-1] != tokenizer.eos_token_id):
            tokens.append(tokenizer.eos_token_id)
        return tokens, np.ones(len(tokens), np.bool_)
    if kind is DataFormat.COMPLETION:
        messages = [
            {"role": "user", "content": row[spec.prompt_feature]},
            {"role": "assistant", "content": row[spec.completion_feature]},
        ]
    else:
        messages = row[spec.chat_feature]
    return encode_chat(messages, row.get("tools"), tokenizer, mask_prompt=spec.mask_prompt)


def encode_chat(
    messages: list[dict[str, Any]], tools: Any, tokenizer: TokenizerWrapper, *, mask_prompt: bool
) -> tuple[list[int], NDArray[np.bool_]]:
    """A conversation's tokens and targets: all of them, or under `mask_prompt` every assistant turn.

    A turn is found by rendering the conversation up to its start and up to its end. Some templates rewrite
    earlier turns (they drop thinking blocks, say); where the part is then no prefix of the whole, an earlier
    turn is not a target, and the last one counts from where the renderings part.
    """
    tokens = list(tokenizer.apply_chat_template(messages, tools=tools, return_dict=False))
    if not mask_prompt:
        return tokens, np.ones(len(tokens), np.bool_)
    supervised = np.zeros(len(tokens), np.bool_)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        last = index == len(messages) - 1
        start = _common(tokens, _render(tokenizer, messages[:index], tools, generation=True))
        if last:
            supervised[start:] = True
            continue
        before = _render(tokenizer, messages[:index], tools, generation=True)
        through = _render(tokenizer, messages[: index + 1], tools, generation=False)
        if start == len(before) and _common(tokens, through) == len(through):
            supervised[start : len(through)] = True
    return tokens, supervised


def _render(tokenizer: TokenizerWrapper, messages: list[dict[str, Any]], tools: Any, *, generation: bool) -> list[int]:
    if not messages:
        return []
    return list(
        tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=generation, return_dict=False)
    )


def _common(left: list[int], right: list[int]) -> int:
    """Length of the common prefix."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def _fit(tokens: list[int], supervised: NDArray[np.bool_], longest: int) -> Document:
    kept = supervised[:longest].copy()
    if len(kept):
        kept[0] = False
    return Document(np.asarray(tokens[:longest], np.int32), kept, max(0, len(tokens) - longest))
