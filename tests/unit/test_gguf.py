"""Reading GGUF headers, what is refused, and the tokenizer that is built of the metadata."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from qlora_engine.job.errors import ConversionRefused, ModelRejected
from qlora_engine.training.gguf import Gguf, Tensor, read_gguf
from qlora_engine.training.gguf_config import build_config
from qlora_engine.training.gguf_llama import check_supported, parts, read_shape
from qlora_engine.training.gguf_tokenizer import build_tokenizer
from support.gguf_writer import SPECIAL, Raw, Value, tensor, tiny_metadata, tiny_tensors, write_gguf


def write(
    path: Path,
    *,
    others: dict[str, str] | None = None,
    extra: dict[str, Raw] | None = None,
    **changes: Value | None,
) -> Path:
    metadata = tiny_metadata(**changes)
    return write_gguf(path, metadata, tiny_tensors(metadata, others=others) | (extra or {}))


def plan(path: Path) -> dict[str, Any]:
    """What the conversion decides from the header alone."""
    gguf = read_gguf(path)
    check_supported(gguf)
    shape = read_shape(gguf)
    return build_config(gguf, shape, parts(gguf, shape), None, [2])


def built(**changes: Value | None) -> Tokenizer:
    metadata = tiny_metadata(**changes)
    gguf = Gguf(Path("tiny.gguf"), metadata, {})
    return Tokenizer.from_str(build_tokenizer(gguf, len(metadata["tokenizer.ggml.tokens"])).tokenizer)


def pieces(text: str, **changes: Value | None) -> list[str]:
    """How the text is split before any merge, spaces and line breaks shown as they are."""
    found = built(**changes).pre_tokenizer.pre_tokenize_str(text)  # type: ignore[union-attr]
    return [text[start:end] for _, (start, end) in found]


def test_the_header_tells_where_each_tensor_lies(tmp_path: Path) -> None:
    """If offsets are wrong, the weights are noise."""
    path = write(tmp_path / "tiny.gguf")
    gguf = read_gguf(path)
    assert gguf.metadata["llama.block_count"] == 2
    assert gguf.metadata["tokenizer.ggml.tokens"][:3] == SPECIAL  # type: ignore[index]
    found = gguf.tensors["blk.1.ffn_down.weight"]
    assert (found.shape, found.type, found.nbytes) == ((64, 96), "Q4_0", 64 * 3 * 18)
    raw = tiny_tensors(tiny_metadata())["blk.1.ffn_down.weight"]
    assert path.read_bytes()[found.offset : found.offset + found.nbytes] == raw.data


def test_an_alignment_of_its_own_is_followed(tmp_path: Path) -> None:
    """Files may align their tensors to more than 32 bytes; read at 32 they would be noise."""
    path = write(tmp_path / "tiny.gguf", general__alignment=256)
    found = read_gguf(path).tensors["output_norm.weight"]
    assert found.offset % 256 == 0
    raw = tiny_tensors(tiny_metadata())["output_norm.weight"]
    assert path.read_bytes()[found.offset : found.offset + found.nbytes] == raw.data


@pytest.mark.parametrize(
    "content", [b"", b"GG", b"GGUF", b"GGUF\x03\0\0\0", b"model: smollm2\niters: 100\n", bytes(64)]
)
def test_what_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    """A wrong file must be a clear message, not a traceback."""
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ConversionRefused):
        read_gguf(path)


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    """A wrong path must be a clear message."""
    for path in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(ModelRejected):
            read_gguf(path)


def test_a_header_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """An interrupted download must be refused wherever it ends, never crash."""
    whole = write(tmp_path / "tiny.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    cuts = [*range(0, 400), *range(400, len(whole), 997), len(whole) - 32]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(ConversionRefused):
            read_gguf(path)


@pytest.mark.parametrize("version", [1, 4, 0x03000000])
def test_other_versions_are_refused(tmp_path: Path, version: int) -> None:
    """An unknown layout, or one of the other byte order, must not be guessed at."""
    path = write_gguf(tmp_path / "x.gguf", tiny_metadata(), {}, version=version)
    with pytest.raises(ConversionRefused, match="version"):
        read_gguf(path)


HOSTILE = {
    "tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0),
    "keys": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40),
    "key length": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62),
    "text length": b"GGUF" + struct.pack("<IQQQ1sIQ", 3, 0, 1, 1, b"k", 8, 2**62),
    "items": b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, 2**61),
    "texts": b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 2**61),
    "nested": b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1),
    "value type": b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 99),
    "dimensions": b"GGUF" + struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"t", 2**31),
    "no rows": b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 0, 0, 0),
    "huge tensor": b"GGUF" + struct.pack("<IQQQ1sIQQIQ", 3, 1, 0, 1, b"t", 2, 2**62, 2**62, 0, 0),
    "far tensor": b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 32, 0, 2**60),
    "odd offset": b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 32, 0, 3),
    "part of a block": b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 33, 2, 0),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_counts_are_refused_before_memory_is_taken(tmp_path: Path, content: bytes) -> None:
    """A few bytes must not be able to ask for terabytes."""
    path = tmp_path / "x.gguf"
    path.write_bytes(content + bytes(64))
    with pytest.raises(ConversionRefused, match="damaged"):
        read_gguf(path)


def test_tensors_that_share_bytes_are_refused(tmp_path: Path) -> None:
    """Overlapping entries would let a small file unfold into any amount of memory."""
    entry = struct.pack("<QI", 32, 0)
    content = b"GGUF" + struct.pack("<IQQ", 3, 2, 0)
    for name in (b"a", b"b"):
        content += struct.pack("<Q1sI", 1, name, 1) + entry + struct.pack("<Q", 0)
    path = tmp_path / "x.gguf"
    path.write_bytes(content + bytes(512))
    with pytest.raises(ConversionRefused, match="overlaps"):
        read_gguf(path)


@pytest.mark.parametrize("kind", ["Q6_K", "Q4_K", "IQ4_NL", "BF16"])
def test_other_tensor_types_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    """llama.cpp's Q4_0 files often hold a Q6_K embedding; taken over it would be noise or lose precision."""
    odd = {"token_embd.weight": Raw(kind, (263, 64), bytes(512))}
    path = write(tmp_path / "x.gguf", extra=odd)
    with pytest.raises(ConversionRefused) as refusal:
        plan(path)
    assert f"token_embd.weight is {kind}" in refusal.value.what
    assert "Q8_0" in str(refusal.value.remedy)


def test_an_unknown_tensor_type_is_refused(tmp_path: Path) -> None:
    """A type that appears after us must be refused by its number."""
    path = write(tmp_path / "x.gguf")
    data = path.read_bytes()
    at = data.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    path.write_bytes(data[:at] + struct.pack("<I", 4711) + data[at + 4 :])
    with pytest.raises(ConversionRefused, match=r"output_norm\.weight is type 4711"):
        plan(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"general.architecture": "gemma3"}, "'gemma3'"),
        ({"general.architecture": None}, "general.architecture is missing"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"split.count": 3}, "split over several files"),
        ({"llama.block_count": 0}, "sizes"),
        ({"llama.block_count": "two"}, "not of type int"),
        ({"llama.block_count": 3}, "blk.2.attn_norm.weight is missing"),
        ({"llama.attention.head_count": 3}, "sizes"),
        ({"llama.attention.head_count_kv": 4}, "attn_k.weight has the shape"),
        ({"llama.rope.dimension_count": 8}, "sizes"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "yarn"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "rms_epsilon"),
    ],
)
def test_models_that_would_compute_otherwise_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    """A model that loads but computes something else is worse than one that is refused."""
    metadata = {key: value for key, value in (tiny_metadata() | changes).items() if value is not None}
    path = write_gguf(tmp_path / "x.gguf", metadata, tiny_tensors(tiny_metadata()))
    with pytest.raises(ConversionRefused, match=says):
        plan(path)


def test_tensors_that_a_llama_has_not_are_refused(tmp_path: Path) -> None:
    """A bias that is dropped silently makes another model."""
    extra = {"blk.0.attn_q.bias": tensor(np.random.default_rng(0), "F32", 64)}
    with pytest.raises(ConversionRefused, match=r"blk\.0\.attn_q\.bias"):
        plan(write(tmp_path / "x.gguf", extra=extra))


def test_the_config_says_what_the_file_says(tmp_path: Path) -> None:
    """mlx_lm builds the model from these values alone."""
    config = plan(write(tmp_path / "x.gguf", others={"token_embd": "Q8_0", "blk.0.ffn_up": "F16"}))
    assert config["model_type"] == "llama"
    assert (config["num_hidden_layers"], config["hidden_size"], config["head_dim"]) == (2, 64, 16)
    assert (config["rms_norm_eps"], config["rope_theta"], config["rope_scaling"]) == (1e-5, 10_000.0, None)
    assert config["tie_word_embeddings"] is True
    assert config["quantization"] == {
        "group_size": 32,
        "bits": 4,
        "mode": "affine",
        "model.embed_tokens": {"group_size": 32, "bits": 8, "mode": "affine"},
        "model.layers.0.mlp.up_proj": False,
    }


def test_rope_factors_that_are_not_those_of_llama_3_are_refused() -> None:
    """Positions turned otherwise than in training give text that falls apart, with no error."""
    metadata = tiny_metadata(llama__embedding_length=256, llama__rope__freq_base=500_000.0)
    tensors = {"token_embd.weight": Tensor("token_embd.weight", (263, 256), "Q4_0", 0, 0)}
    gguf = Gguf(Path("x.gguf"), metadata, tensors)
    for factors in ([1.0] * 31 + [7.0], [8.0], [1.0] * 16 + [8.0] * 16):
        with pytest.raises(ConversionRefused, match=r"rope_freqs\.weight"):
            build_config(gguf, read_shape(gguf), [], factors, [2])


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("smollm", ["It", "'s", " the", " ", "1", "2", "3", "4", "!?", "\n\n ", " x"]),
        ("gpt-2", ["It", "'s", " the", " 1234", "!?", "\n\n ", " x"]),
        ("llama-bpe", ["It", "'s", " the", " ", "123", "4", "!?\n\n", " ", " x"]),
        ("qwen2", ["It", "'s", " the", " ", "1", "2", "3", "4", "!?\n\n", " ", " x"]),
        ("default", ["It", "'", "s", " the", " ", "123", "4", "!?", "\n\n ", " x"]),
    ],
)
def test_text_is_split_by_the_rules_that_the_file_names(pre: str, expected: list[str]) -> None:
    """Split otherwise, the model sees tokens that it was never trained on."""
    assert pieces("It's the 1234!?\n\n  x", tokenizer__ggml__pre=pre) == expected


def test_merges_special_tokens_and_bytes_give_the_ids_of_the_file() -> None:
    """Ids are the model's input: each must be that of the file's vocabulary."""
    tokenizer = built()
    tokens = tiny_metadata()["tokenizer.ggml.tokens"]
    ids = tokenizer.encode("<|im_start|>the the12é").ids
    assert [tokens[index] for index in ids] == ["<|im_start|>", "the", "Ġthe", "1", "2", "Ã", "©"]
    assert tokenizer.decode(ids) == "the the12é"


@pytest.mark.parametrize(
    ("pre", "add", "begins"), [("smollm", None, 0), ("llama-bpe", None, 1), ("llama-bpe", False, 0)]
)
def test_a_begin_token_is_added_where_the_model_expects_it(pre: str, add: bool | None, begins: int) -> None:
    """Llama 3 without its first token, or others with one, lose quality without any error."""
    tokenizer = built(tokenizer__ggml__pre=pre, tokenizer__ggml__add_bos_token=add)
    ids = tokenizer.encode("the").ids
    assert ids[: len(ids) - 1] == [1] * begins


def test_all_tokens_that_end_a_turn_are_known() -> None:
    """A chat that does not stop at its end-of-turn token runs on for ever."""
    metadata = tiny_metadata(tokenizer__ggml__eot_token_id=0)
    files = build_tokenizer(Gguf(Path("x.gguf"), metadata, {}), 263)
    assert files.end_tokens == [2, 0]
    assert files.config["eos_token"] == SPECIAL[2]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "bert"}, "'bert'"),
        ({"pre": "deepseek-llm"}, "'deepseek-llm'"),
        ({"pre": None}, "too old"),
        ({"tokens": None}, "tokens is missing"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "a token twice"),
        ({"tokens": ["a"] * 300, "token_type": [1] * 300}, "300 tokens for 263 rows"),
        ({"token_type": [1]}, "one number for each token"),
        ({"merges": ["t q"]}, "do not exist"),
        ({"merges": ["t"]}, "do not exist"),
        ({"eos_token_id": 999}, "is 999"),
        ({"eos_token_id": None}, "ends a text"),
        ({"model": "llama"}, "scores"),
        ({"model": "llama", "scores": [0.0] * 263}, "for each byte"),
    ],
)
def test_tokenizers_that_cannot_be_built_exactly_are_refused(changes: dict[str, Any], says: str) -> None:
    """A tokenizer that is nearly right trains a model that is quietly wrong."""
    metadata = tiny_metadata(**{f"tokenizer__ggml__{key}": value for key, value in changes.items()})
    with pytest.raises(ConversionRefused, match=says):
        build_tokenizer(Gguf(Path("x.gguf"), metadata, {}), 263)


def test_a_sentencepiece_vocabulary_gives_the_ids_of_sentencepiece(tmp_path: Path) -> None:
    """Llama 2 and Mistral files hold scores instead of merges; the ids must be the original library's."""
    sentencepiece = pytest.importorskip("sentencepiece")
    text = tmp_path / "text"
    readable = " ".join(Path(__file__).read_text().split())
    text.write_text("\n".join(readable[start : start + 200] for start in range(0, len(readable), 200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(tmp_path / "sp"),
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sp.model"))
    count = reference.vocab_size()
    kinds = [
        2 if reference.is_unknown(i) else 3 if reference.is_control(i) else 6 if reference.is_byte(i) else 1
        for i in range(count)
    ]
    tokenizer = built(
        tokenizer__ggml__model="llama",
        tokenizer__ggml__tokens=[reference.id_to_piece(i) for i in range(count)],
        tokenizer__ggml__scores=[reference.get_score(i) for i in range(count)],
        tokenizer__ggml__token_type=kinds,
    )
    rng = np.random.default_rng(0)
    parts_of_text = ["the ", "  ", "file", "é", "漢", "🦊", "tokens", "\n", "12", "aaaa", " a", "="]
    for _ in range(300):
        sample = "".join(rng.choice(parts_of_text, rng.integers(1, 12)))
        start = int(rng.integers(0, len(readable) - 80))
        for line in (sample, readable[start : start + 80]):
            ids = tokenizer.encode(line, add_special_tokens=False).ids
            assert ids == reference.encode(line)
            assert tokenizer.decode(ids) == line
    assert tokenizer.encode("the").ids[0] == 1
