"""Rows of text become tokens and targets: what is learned, what is cut, what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer

from qlora_engine.job.datafiles import DataFormat
from qlora_engine.job.errors import DataRejected
from qlora_engine.job.spec import JobSpec
from qlora_engine.training.data import Document, read_documents, tokenize
from support import tiny

# As Qwen3's does: thinking stays in the last turn alone, and a generation prompt begins a thinking block.
THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and not loop.last %}{{ message['content'].split('</think>')[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)
TOOLS = (
    "{% if tools %}<|im_start|>tools\n{% for tool in tools %}{{ tool['function']['name'] }}\n{% endfor %}<|im_end|>\n"
    "{% endif %}" + tiny.CHAT_TEMPLATE
)
STRICT = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + tiny.CHAT_TEMPLATE
)


def make(folder: Path, template: str | None = tiny.CHAT_TEMPLATE) -> TokenizerWrapper:
    folder.mkdir(parents=True)
    tiny.make_tokenizer(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template")
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerWrapper:
    return make(tmp_path_factory.mktemp("tokenizer") / "chat")


def one(row: Mapping[str, Any], kind: DataFormat, tokenizer: TokenizerWrapper, **keys: Any) -> Document:
    (document,) = tokenize([(1, row)], "train.jsonl", kind, JobSpec(**keys), tokenizer)
    return document


def whole(document: Document, tokenizer: TokenizerWrapper) -> str:
    return tokenizer.decode(document.tokens.tolist())


def learned(document: Document, tokenizer: TokenizerWrapper) -> list[str]:
    """Each run of targets as text."""
    runs: list[list[int]] = []
    before = False
    for token, target in zip(document.tokens.tolist(), document.supervised.tolist(), strict=True):
        if target:
            if not before:
                runs.append([])
            runs[-1].append(token)
        before = target
    return [tokenizer.decode(run) for run in runs]


def test_text_is_learned_to_its_end(tokenizer: TokenizerWrapper) -> None:
    """Without its end token a model does not learn to stop; the first token is predicted by nothing."""
    document = one({"text": "abc"}, DataFormat.TEXT, tokenizer)
    assert whole(document, tokenizer) == "abc<|im_end|>"
    assert learned(document, tokenizer) == ["bc<|im_end|>"]


def test_text_that_has_its_end_gets_no_second(tokenizer: TokenizerWrapper) -> None:
    """Two ends in a row occur nowhere else."""
    document = one({"text": "abc<|im_end|>"}, DataFormat.TEXT, tokenizer)
    assert whole(document, tokenizer) == "abc<|im_end|>"


def test_a_completion_is_a_conversation_of_two_turns(tokenizer: TokenizerWrapper) -> None:
    """The adapted model is asked through its chat template, so it must be taught through it."""
    row = {"prompt": "1+1?", "completion": "2"}
    document = one(row, DataFormat.COMPLETION, tokenizer)
    text = "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
    assert whole(document, tokenizer) == text
    assert document.targets == len(document) - 1


def test_other_feature_names_are_read(tokenizer: TokenizerWrapper) -> None:
    """`prompt_feature` and its like name the columns of somebody else's data."""
    row = {"question": "q", "answer": "a"}
    keys = {"prompt_feature": "question", "completion_feature": "answer", "mask_prompt": True}
    assert learned(one(row, DataFormat.COMPLETION, tokenizer, **keys), tokenizer) == ["a<|im_end|>\n"]


def test_a_masked_prompt_is_not_learned(tokenizer: TokenizerWrapper) -> None:
    """`mask_prompt` promises that only answers are learned, from their first token to the end of their turn."""
    row = {"prompt": "1+1?", "completion": "2"}
    assert learned(one(row, DataFormat.COMPLETION, tokenizer, mask_prompt=True), tokenizer) == ["2<|im_end|>\n"]


def test_every_answer_of_a_conversation_is_learned(tokenizer: TokenizerWrapper) -> None:
    """mlx_lm learns the last answer alone and wastes the others."""
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "A."},
        {"role": "user", "content": "b?"},
        {"role": "assistant", "content": "B."},
        {"role": "user", "content": "and?"},
    ]
    document = one({"messages": messages}, DataFormat.CHAT, tokenizer, mask_prompt=True)
    assert learned(document, tokenizer) == ["A.<|im_end|>\n", "B.<|im_end|>\n"]


def test_a_template_that_rewrites_earlier_turns_is_not_trusted_for_them(tmp_path: Path) -> None:
    """A mask found by prefixes would be shifted by the thinking that the template drops."""
    tokenizer = make(tmp_path / "thinking", THINKING)
    messages = [
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "<think>hm</think>A."},
        {"role": "user", "content": "b?"},
        {"role": "assistant", "content": "<think>so</think>B."},
    ]
    document = one({"messages": messages}, DataFormat.CHAT, tokenizer, mask_prompt=True)
    assert "hm" not in whole(document, tokenizer)
    assert learned(document, tokenizer) == ["so</think>B.<|im_end|>\n"]


def test_an_answer_without_the_thinking_that_the_prompt_begins_is_learned_whole(tmp_path: Path) -> None:
    """The generation prompt then is no prefix of the row; the answer counts from where the two part."""
    tokenizer = make(tmp_path / "thinking", THINKING)
    row = {"prompt": "a?", "completion": "A."}
    assert learned(one(row, DataFormat.COMPLETION, tokenizer, mask_prompt=True), tokenizer) == ["A.<|im_end|>\n"]


def test_tools_are_rendered_and_not_learned(tmp_path: Path) -> None:
    """A row's `tools` stand before its first turn."""
    tokenizer = make(tmp_path / "tools", TOOLS)
    row = {
        "messages": [{"role": "user", "content": "rain?"}, {"role": "assistant", "content": "call"}],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
    }
    document = one(row, DataFormat.CHAT, tokenizer, mask_prompt=True)
    assert whole(document, tokenizer).startswith("<|im_start|>tools\nweather\n")
    assert learned(document, tokenizer) == ["call<|im_end|>\n"]


def test_a_long_row_is_cut_and_the_cut_is_counted(tokenizer: TokenizerWrapper) -> None:
    """Nothing is truncated behind a user's back."""
    document = one({"text": "x" * 50}, DataFormat.TEXT, tokenizer, max_seq_length=20)
    assert len(document) == 20
    assert document.cut == 31
    assert document.targets == 19
    assert one({"text": "x" * 19}, DataFormat.TEXT, tokenizer, max_seq_length=20).cut == 0


def test_a_prompt_that_fills_the_row_leaves_nothing_to_learn(tokenizer: TokenizerWrapper) -> None:
    """Such a row must count as empty, not as a NaN."""
    row = {"prompt": "x" * 50, "completion": "y"}
    document = one(row, DataFormat.COMPLETION, tokenizer, max_seq_length=20, mask_prompt=True)
    assert (len(document), document.targets) == (20, 0)


def test_a_row_that_the_template_refuses_is_named_by_its_line(tmp_path: Path) -> None:
    """One bad row in a million must be found."""
    tokenizer = make(tmp_path / "strict", STRICT)
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    bad = {"messages": [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(good) + "\n\n" + json.dumps(bad) + "\n")
    with pytest.raises(DataRejected) as caught:
        read_documents(path, DataFormat.CHAT, JobSpec(), tokenizer)
    assert caught.value.where == f"{path}, line 3"
    assert "roles must alternate" in caught.value.what
    assert caught.value.remedy


def test_text_that_is_no_unicode_is_named_by_its_line(tokenizer: TokenizerWrapper) -> None:
    """Half a surrogate pair is valid JSON and not valid text."""
    with pytest.raises(DataRejected, match="Row 1") as caught:
        one({"text": "a\ud800b"}, DataFormat.TEXT, tokenizer)
    assert caught.value.where == "train.jsonl, line 1"


def test_conversations_need_a_chat_template(tmp_path: Path) -> None:
    """A base model has none; training it on a made-up format would be a guess."""
    tokenizer = make(tmp_path / "base", None)
    with pytest.raises(DataRejected) as caught:
        one({"prompt": "a", "completion": "b"}, DataFormat.COMPLETION, tokenizer)
    assert caught.value.remedy is not None
    assert "text" in caught.value.remedy
    assert learned(one({"text": "ab"}, DataFormat.TEXT, tokenizer), tokenizer) == ["b<|im_end|>"]
