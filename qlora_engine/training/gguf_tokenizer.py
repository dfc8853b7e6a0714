"""Builds the tokenizer files of an MLX model from the metadata of a GGUF.

Two kinds are built, so that they give the ids that the model was trained with: byte-level BPE (`gpt2`) with
the pre-tokenizers that `PRE_TOKENIZERS` names, and SentencePiece BPE with byte fallback (`llama`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from qlora_engine.training.gguf import Gguf
from qlora_engine.training.gguf_llama import meta, refused

# Values of tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre: the splits before the byte-level BPE, one after the other.
PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    "gpt-2": (GPT2,),
    "smollm": (r"\p{N}", GPT2),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "qwen2": (_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),),
    # What llama.cpp does with a file that says "default".
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
SPACE = "▁"  # how SentencePiece writes a space
_REMEDY = "Take the model in MLX format from where it is published, and give its folder."


@dataclass(frozen=True)
class TokenizerFiles:
    """What the model folder needs of a tokenizer.

    Attributes:
        tokenizer: the content of tokenizer.json.
        config: the content of tokenizer_config.json.
        chat_template: the Jinja text, where the file has one.
        end_tokens: ids of the tokens that end a text or a turn, the usual one first.
    """

    tokenizer: str
    config: dict[str, Any]  # Any: JSON
    chat_template: str | None
    end_tokens: list[int]


def build_tokenizer(gguf: Gguf, vocabulary: int) -> TokenizerFiles:
    """The tokenizer of the model.

    Args:
        vocabulary: rows of the embedding; it may have more rows than there are tokens.

    Raises:
        ConversionRefused: a kind of tokenizer that cannot be built exactly, or damaged metadata.
    """
    kind = meta(gguf, "tokenizer.ggml.model", str)
    tokens = _texts(gguf, "tokenizer.ggml.tokens")
    types = _numbers(gguf, "tokenizer.ggml.token_type", len(tokens))
    if not tokens or len(tokens) > vocabulary:
        raise refused(gguf, f"There are {len(tokens)} tokens for {vocabulary} rows of the embedding.", _REMEDY)
    if len(set(tokens)) != len(tokens):
        raise refused(gguf, "The vocabulary holds a token twice.", _REMEDY)
    if kind == "gpt2":
        tokenizer = _byte_level(gguf, tokens)
        begin_by_default = gguf.metadata.get("tokenizer.ggml.pre") in LLAMA3_NAMES
    elif kind == "llama":
        tokenizer = _sentencepiece(gguf, tokens, types)
        begin_by_default = True
    else:
        raise refused(
            gguf,
            f"The tokenizer is of the kind {kind!r}; supported are 'gpt2' (byte-level BPE) and 'llama' "
            "(SentencePiece).",
            _REMEDY,
        )
    special = [token for token, kind_ in zip(tokens, types, strict=True) if kind_ in (CONTROL, UNKNOWN)]
    ours = [token for token, kind_ in zip(tokens, types, strict=True) if kind_ == USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in ours])
    if tokenizer.get_vocab_size(with_added_tokens=True) != len(tokens):
        raise refused(gguf, "The tokenizer cannot be built without adding tokens.", _REMEDY)
    _add_begin_and_end(gguf, tokenizer, tokens, begin_by_default)
    return TokenizerFiles(
        tokenizer=tokenizer.to_str(pretty=False),
        config=_config(gguf, tokens),
        chat_template=meta(gguf, "tokenizer.chat_template", str, "") or None,
        end_tokens=_end_tokens(gguf, len(tokens)),
    )


def _byte_level(gguf: Gguf, tokens: list[str]) -> Tokenizer:
    """GPT-2's BPE: each byte has a printable character, merges are listed in the file."""
    pre = meta(gguf, "tokenizer.ggml.pre", str, "")
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise refused(
            gguf,
            f"The tokenizer splits text by the rules {pre!r} (tokenizer.ggml.pre); supported are {known}."
            if pre
            else "The file does not say how its tokenizer splits text (tokenizer.ggml.pre): it is too old.",
            _REMEDY,
        )
    merges = []
    ids = {token: index for index, token in enumerate(tokens)}
    for merge in _texts(gguf, "tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if left not in ids or right not in ids or left + right not in ids:
            raise refused(gguf, f"The merge {merge!r:.80} is of tokens that do not exist.", _REMEDY)
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=pre in LLAMA3_NAMES))
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(rule), behavior="isolated") for rule in PRE_TOKENIZERS[pre]]
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(gguf: Gguf, tokens: list[str], types: list[float]) -> Tokenizer:
    """SentencePiece's BPE: the pair with the best score is merged first; bytes stand in for the unknown."""
    scores = _numbers(gguf, "tokenizer.ggml.scores", len(tokens))
    if sum(kind == BYTE for kind in types) != 256:
        raise refused(gguf, "The tokenizer has no token for each byte, so it is not SentencePiece BPE.", _REMEDY)
    unknown = [token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN]
    if len(unknown) != 1:
        raise refused(gguf, f"The tokenizer has {len(unknown)} tokens for the unknown instead of one.", _REMEDY)
    ids = {token: index for index, token in enumerate(tokens)}
    mergeable = {token for token, kind in zip(tokens, types, strict=True) if kind in (NORMAL, UNUSED)}
    merges = []
    for token in sorted(mergeable, key=lambda token: (-scores[ids[token]], ids[token])):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in mergeable and pair[1] in mergeable]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token=unknown[0], fuse_unk=True, byte_fallback=True))
    prefix = meta(gguf, "tokenizer.ggml.add_space_prefix", bool, True)
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces] if prefix else [spaces])
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _add_begin_and_end(gguf: Gguf, tokenizer: Tokenizer, tokens: list[str], begin_by_default: bool) -> None:
    begin = meta(gguf, "tokenizer.ggml.add_bos_token", bool, begin_by_default)
    end = meta(gguf, "tokenizer.ggml.add_eos_token", bool, False)
    around = []
    if begin:
        around.append(_special_id(gguf, "bos", len(tokens)))
    if end:
        around.append(_special_id(gguf, "eos", len(tokens)))
    if None in around:
        raise refused(gguf, "The tokenizer adds a token to each text but does not say which.", _REMEDY)
    if not around:
        return
    names = [tokens[index] for index in around if index is not None]
    first = f"{names[0]}:0" if begin else None
    last = f"{names[-1]}:0" if end else None
    single = [piece for piece in (first, "$A:0", last) if piece]
    pair = single + [piece.replace(":0", ":1").replace("$A", "$B") for piece in single]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(name, index) for name, index in zip(names, around, strict=True) if index is not None],
    )


def _config(gguf: Gguf, tokens: list[str]) -> dict[str, Any]:  # Any: JSON
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta(gguf, "llama.context_length", int),
    }
    for ours, theirs in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        index = _special_id(gguf, theirs, len(tokens))
        if index is not None:
            config[f"{ours}_token"] = tokens[index]
    return config


def _end_tokens(gguf: Gguf, count: int) -> list[int]:
    found = [_special_id(gguf, name, count) for name in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(index for index in found if index is not None))
    if not ends:
        raise refused(gguf, "The file names no token that ends a text (tokenizer.ggml.eos_token_id).", _REMEDY)
    return ends


def _special_id(gguf: Gguf, name: str, count: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    if key not in gguf.metadata:
        return None
    index = meta(gguf, key, int)
    if not 0 <= index < count:
        raise refused(gguf, f"{key} is {index}, but there are {count} tokens.", _REMEDY)
    return index


def _texts(gguf: Gguf, key: str) -> list[str]:
    value = gguf.metadata.get(key)
    if not isinstance(value, list):
        raise refused(gguf, f"The metadata value {key} is missing or no list.", _REMEDY)
    texts = [item for item in value if isinstance(item, str)]
    # Bytes that are no UTF-8 arrive as surrogates, which no tokenizer file can hold.
    if len(texts) != len(value) or any("\ud800" <= char <= "\udfff" for text in texts for char in text):
        raise refused(gguf, f"The metadata value {key} holds something that is no text.", _REMEDY)
    return texts


def _numbers(gguf: Gguf, key: str, count: int) -> list[float]:
    value = gguf.metadata.get(key)
    if not isinstance(value, list) or len(value) != count:
        raise refused(gguf, f"The metadata value {key} is missing or not one number for each token.", _REMEDY)
    numbers = [item for item in value if isinstance(item, int | float)]
    if len(numbers) != count:
        raise refused(gguf, f"The metadata value {key} holds something that is no number.", _REMEDY)
    return [float(number) for number in numbers]
