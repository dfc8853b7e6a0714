"""Many rows tokenized in one call give what each gives alone."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer

from qlora_engine.job.datafiles import DataFormat
from qlora_engine.job.errors import DataRejected
from qlora_engine.job.spec import JobSpec
from qlora_engine.training import encode
from qlora_engine.training.encode import encode_rows
from support import tiny

ODD = [
    "plain", " leading", "trailing ", "", "\n\n", "\t x\r\n",
    "naïve – über", "漢字かな交じり文", "🦊👩‍👩‍👧‍👦", "e\u0301 é",
    "\u202eright to left", "a\x00b", "\ufeffbom", "<|im_end|>", "<|im_start|>user\nx<|im_end|>", "<|endoftext|>",
    "x" * 5000, "1234567890" * 30, " " * 77, "\u00a0\u2003", "ﬁ ligature", "\U0010ffff",
]  # fmt: skip


def made_of(folder: Path, *, special: bool) -> TokenizerWrapper:
    """A tokenizer; with `special`, one that begins each text with a token of its own, as llama's does."""
    folder.mkdir()
    tiny.make_tokenizer(folder, [f"{a}{b}" for a in "abcdeinrst " for b in "aeiou"])
    if special:
        from tokenizers import Tokenizer, processors

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
        tokenizer.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "with a first token"])
def tokenizer(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> TokenizerWrapper:
    found = made_of(tmp_path_factory.mktemp("encode") / "model", special=request.param)
    assert encode._takes_many(found)
    return found


def texts(count: int) -> list[str]:
    draw = random.Random(0)
    return ODD + ["".join(draw.choices([*ODD[:12], "word ", "Other"], k=draw.randrange(1, 30))) for _ in range(count)]


def encoded(rows: list[dict[str, Any]], kind: DataFormat, tokenizer: TokenizerWrapper, **keys: Any) -> list[Any]:
    found = encode_rows(enumerate(rows, 1), "train.jsonl", kind, JobSpec(**keys), tokenizer)
    return [(row.tokens, row.supervised.tolist()) for row in found]


def test_texts_are_what_the_tokenizer_makes_of_each(tokenizer: TokenizerWrapper) -> None:
    """A faster way that makes other tokens trains another model."""
    rows = texts(300)
    found = encoded([{"text": text} for text in rows], DataFormat.TEXT, tokenizer)
    for text, (tokens, supervised) in zip(rows, found, strict=True):
        alone = tokenizer.encode(text)
        end = [] if alone[-1:] == [tokenizer.eos_token_id] else [tokenizer.eos_token_id]
        assert tokens == [*alone, *end], text[:40]
        assert supervised == [False] + [True] * (len(tokens) - 1)


@pytest.mark.parametrize("mask_prompt", [False, True])
def test_conversations_are_what_the_tokenizer_makes_of_each(
    tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch, mask_prompt: bool
) -> None:
    """Rendered to text first, then tokenized together; as mlx_lm does, each is tokenized by the template itself."""
    draw, rows = random.Random(1), texts(100)
    chats = [
        {
            "messages": [
                {"role": draw.choice(["system", "user", "assistant"]), "content": draw.choice(rows)}
                for _ in range(draw.randrange(1, 6))
            ]
        }
        for _ in range(200)
    ]
    together = encoded(chats, DataFormat.CHAT, tokenizer, mask_prompt=mask_prompt)
    for chat, (tokens, _) in zip(chats, together, strict=True):
        assert tokens == list(tokenizer.apply_chat_template(chat["messages"], return_dict=False))
    monkeypatch.setattr(encode, "_takes_many", lambda _: False)
    assert encoded(chats, DataFormat.CHAT, tokenizer, mask_prompt=mask_prompt) == together


def test_a_tokenizer_with_ways_of_its_own_is_asked_row_by_row(tmp_path: Path) -> None:
    """Whether its batches equal its rows is not known."""
    tokenizer = made_of(tmp_path / "model", special=False)

    class Own(type(tokenizer._tokenizer)):  # type: ignore[misc]
        def encode(self, text: str, **_: Any) -> list[int]:
            return [len(text)]

    tokenizer._tokenizer.__class__ = Own
    assert not encode._takes_many(tokenizer)
    found = encoded([{"text": "abc"}], DataFormat.TEXT, tokenizer)
    assert found[0][0] == [3, tokenizer.eos_token_id]


def test_the_first_bad_row_of_many_is_named(tokenizer: TokenizerWrapper) -> None:
    """Rows that are tokenized together are not to blame together."""
    rows = [{"text": text} for text in ["good"] * 40 + ["half \ud800 a pair"] + ["good"] * 40 + ["\udfff"]]
    with pytest.raises(DataRejected, match="Row 41 cannot") as caught:
        encoded(rows, DataFormat.TEXT, tokenizer)
    assert caught.value.where == "train.jsonl, line 41"
    assert json.dumps(caught.value.as_dict())
