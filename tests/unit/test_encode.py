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
from qlora_engine.training.gguf_tokenizer import PRE_TOKENIZERS
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


INSTRUCTIONS = (
    "{% for m in messages %}{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n"
    "{% else %}### Response:\n{{ m.content }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)


def with_line_breaks(folder: Path, *, split: str = "gpt-2", template: str = tiny.CHAT_TEMPLATE) -> TokenizerWrapper:
    """A tokenizer that makes one token of two line breaks, as most do, where its split leaves them together."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    tokenizer = made_of(folder, special=False)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain.model = models.BPE(vocab={**plain.get_vocab(), "ĊĊ": len(plain.get_vocab())}, merges=[("Ċ", "Ċ")])
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    isolated = pre_tokenizers.Split(Regex(PRE_TOKENIZERS[split][0]), behavior="isolated")
    plain.pre_tokenizer = pre_tokenizers.Sequence([isolated, level])
    plain.save(str(folder / "tokenizer.json"))
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": template}))
    tokenizer = load_tokenizer(folder)
    assert encode._takes_many(tokenizer)
    return tokenizer


def learned(said: str, tokenizer: TokenizerWrapper) -> str:
    """What is learned of two answers, of which the first is this one."""
    turns = [("user", "q"), ("assistant", said), ("user", "r"), ("assistant", "last")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    ((tokens, supervised),) = encoded([row], DataFormat.CHAT, tokenizer, mask_prompt=True)
    return str(tokenizer.decode([token for token, on in zip(tokens, supervised, strict=True) if on]))


def test_an_answer_whose_first_token_merges_with_its_prompt_is_learned(tmp_path: Path) -> None:
    """Every answer of the assistant is promised; the token across the border counts, as it does of the last one."""
    tokenizer = with_line_breaks(tmp_path / "model", split="qwen2")
    assert learned("first", tokenizer) == "first<|im_end|>\nlast<|im_end|>\n"
    assert learned("\nfirst", tokenizer) == "\n\nfirst<|im_end|>\nlast<|im_end|>\n"


def test_an_answer_whose_end_splits_otherwise_before_the_next_turn_is_learned(tmp_path: Path) -> None:
    """With such a template no row's earlier answers were learned at all."""
    tokenizer = with_line_breaks(tmp_path / "model", template=INSTRUCTIONS)
    assert learned("first", tokenizer) == "first\n\nlast\n\n"
    assert learned(" naïve 🦊", tokenizer) == " naïve 🦊\n\nlast\n\n"


@pytest.mark.parametrize("trim", [False, True])
def test_a_space_or_half_a_character_at_a_border_belongs_to_its_turn(tmp_path: Path, trim: bool) -> None:
    """Byte-level tokenizers may leave spaces out of a token's offsets, and give parts of a character all of it."""
    from tokenizers import processors

    tokenizer = with_line_breaks(tmp_path / "model")
    tokenizer._tokenizer._tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    # without an exact prefix of tokens, so that the offsets decide
    whole = "### Instruction:\nq\n\n### Response: first 🦊### Instruction:\nr"
    encoding = tokenizer._tokenizer._tokenizer.encode(whole, add_special_tokens=False)
    found = encode._between(
        encode._Rendered(encoding.ids, whole, encoding),
        encode._Rendered([-1], whole[: whole.index(" first")]),
        encode._Rendered([-1], whole[: whole.rindex("### Instruction")]),
    )
    ids = [token for token, on in zip(encoding.ids, found.tolist(), strict=True) if on]
    assert tokenizer.decode(ids) == " first 🦊"


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
