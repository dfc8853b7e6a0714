"""The vocabulary of a model as GGUF's metadata, from its tokenizer: the way back of `gguf_tokenizer`.

A file whose tokenizer splits text otherwise than the model's would answer, and worse. So what llama.cpp is not known to
split in the same way is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
from mlx_lm.tokenizer_utils import TokenizerWrapper

from qlora_engine.job.errors import ConversionRefused
from qlora_engine.training.gguf_tokenizer import (
    BYTE,
    CONTROL,
    GPT2,
    LLAMA3_NAMES,
    NORMAL,
    PRE_TOKENIZERS,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)

Metadata = dict[str, mx.array | str | list[str]]  # what `mx.save_gguf` takes
Json = dict[str, Any]

REMEDY = "Fuse it without `export`: mlx_lm and its server take every model."
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def vocabulary(tokenizer: TokenizerWrapper, rows: int, where: str, ends: list[int]) -> Metadata:
    """The keys `tokenizer.*` of a GGUF file.

    Args:
        tokenizer: of the model.
        rows: of the embedding; where they are more than there are tokens, the rest is marked as unused.
        where: the model's folder, for errors.
        ends: ids of tokens that end a text or a turn, as the model's config names them.

    Raises:
        ConversionRefused: llama.cpp would not be sure to split text as this tokenizer does.
    """
    data: Json = json.loads(tokenizer.backend_tokenizer.to_str())
    model, added = data["model"], data["added_tokens"]
    ids: dict[str, int] = {**model.get("vocab", {}), **{token["content"]: token["id"] for token in added}}
    if model["type"] != "BPE" or not ids or max(ids.values()) >= rows:
        raise _refused(f"its tokenizer is of the kind {model['type']}, with {len(ids)} tokens for {rows} rows", where)
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [UNUSED] * rows
    for token, number in ids.items():
        tokens[number], types[number] = token, NORMAL
    for token in added:
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if model.get("byte_fallback"):
        kind = _sentencepiece(data, where)
        for token, number in ids.items():
            types[number] = (
                BYTE if _BYTE.fullmatch(token) else UNKNOWN if token == model["unk_token"] else types[number]
            )
        kind |= {"tokenizer.ggml.scores": mx.array(_scores(tokens, merges), mx.float32)}
        kind |= {"tokenizer.ggml.add_space_prefix": mx.array(tokenizer_starts_with_space(tokenizer))}
    else:
        kind = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": _pre(data, where),
            "tokenizer.ggml.merges": merges,
        }
    return {
        **kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": mx.array(types, mx.int32),
        **_special(tokenizer, ends, where),
        **_template(tokenizer),
    }


def _pre(data: Json, where: str) -> str:
    """llama.cpp's name for how a byte-level tokenizer splits text before it merges."""
    splits = tuple(_splits(data["pre_tokenizer"] or {}, where))
    normalizer, whole_first = data["normalizer"], bool(data["model"].get("ignore_merges"))
    for name, rules in PRE_TOKENIZERS.items():
        normal = {"type": "NFC"} if name == "qwen2" else None
        if rules == splits and normalizer == normal and whole_first == (name in LLAMA3_NAMES):
            return name
    raise _refused(f"llama.cpp has no known name for how its tokenizer splits text: {' then '.join(splits)}", where)


def _splits(step: Json, where: str) -> Iterator[str]:
    """The patterns by which text is split, in order."""
    match step:
        case {"type": "Sequence", "pretokenizers": steps}:
            for one in steps:
                yield from _splits(one, where)
        case {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False}:
            yield rule
        case {"type": "Digits", "individual_digits": True}:
            yield r"\p{N}"
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool(by_rule)}:
            if by_rule:
                yield GPT2
        case _:
            raise _refused(f"its tokenizer has a step that GGUF does not know: {step!s:.100}", where)


def _sentencepiece(data: Json, where: str) -> Metadata:
    """SentencePiece's BPE may replace spaces, and put one before a text, and nothing else."""
    normalizer, pre = data["normalizer"] or {}, data["pre_tokenizer"] or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    steps = [*steps, *pre.get("pretokenizers", [pre] if pre else [])]
    for step in steps:
        match step:
            case {"type": "Prepend", "prepend": "▁"} | {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                pass
            case {"type": "Metaspace", "replacement": "▁", "split": False}:
                pass
            case _:
                raise _refused(f"its tokenizer has a step that GGUF does not know: {step!s:.100}", where)
    return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """The better, the earlier the merge that makes a token; SentencePiece takes the best pair first."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def tokenizer_starts_with_space(tokenizer: TokenizerWrapper) -> bool:
    """Whether a text gets a space before it."""
    first = tokenizer.convert_ids_to_tokens(tokenizer.encode("a", add_special_tokens=False))[0]
    return str(first).startswith(SPACE)


def _special(tokenizer: TokenizerWrapper, ends: list[int], where: str) -> Metadata:
    """Which tokens begin and end a text, and whether they are added to each."""
    named = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    named |= {"unknown": tokenizer.unk_token_id, "padding": tokenizer.pad_token_id}
    if named["eos"] is None:
        named["eos"] = ends[0] if ends else None
    if more := [number for number in ends if number != named["eos"]]:
        named["eot"] = more[0]
    plain, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    begins, ended = whole[:1] == [named["bos"]], whole[-1:] == [named["eos"]]
    if [*([named["bos"]] if begins else []), *plain, *([named["eos"]] if ended else [])] != whole:
        raise _refused("its tokenizer adds other tokens to a text than one that begins and one that ends it", where)
    result: Metadata = {
        f"tokenizer.ggml.{name}_token_id": mx.array(number, mx.uint32)
        for name, number in named.items()
        if number is not None
    }
    return result | {
        "tokenizer.ggml.add_bos_token": mx.array(begins),
        "tokenizer.ggml.add_eos_token": mx.array(ended),
    }


def _template(tokenizer: TokenizerWrapper) -> Metadata:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return {"tokenizer.chat_template": template} if isinstance(template, str) and template else {}


def _refused(what: str, where: str) -> ConversionRefused:
    return ConversionRefused(f"The model cannot be written as GGUF: {what}.", where=where, remedy=REMEDY)
