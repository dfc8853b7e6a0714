"""A model that goes out as GGUF is the model that came in as GGUF: tensors, sizes, positions, vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlx_lm import load
from tokenizers import Tokenizer, models, pre_tokenizers

from qlora_engine.job.errors import ConversionRefused
from qlora_engine.training import export_gguf
from qlora_engine.training.gguf import Gguf, read_gguf
from qlora_engine.training.gguf_config import llama3_factors
from qlora_engine.training.gguf_folder import write_folder
from qlora_engine.training.gguf_tokenizer import build_tokenizer
from qlora_engine.training.tree import flat
from support import tiny
from support.gguf_writer import Raw, Value, tiny_metadata, tiny_tensors, write_gguf

TEXT = "the 12 the12  thé\nabab b ab"
# SentencePiece's kind: bytes for what is unknown, and the better a pair, the earlier it is merged.
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab"]
SENTENCEPIECE: dict[str, Value | None] = {
    "tokenizer__ggml__model": "llama",
    "tokenizer__ggml__pre": "default",
    "tokenizer__ggml__merges": None,
    "tokenizer__ggml__tokens": PIECES,
    "tokenizer__ggml__scores": [0.0] * 259 + [-9.0, -9.0, -9.0, -1.0, -2.0, -3.0],
    "tokenizer__ggml__token_type": [2, 3, 3, *[6] * 256, *[1] * 6],
    "tokenizer__ggml__padding_token_id": None,
}


def there_and_back(folder: Path, metadata: dict[str, Any], tensors: dict[str, Raw]) -> tuple[Gguf, Gguf]:
    """A GGUF file, and what the MLX model that is made of it is written as."""
    given = write_gguf(folder / "given.gguf", metadata, tensors)
    write_folder(given, folder / "model", licence=None, progress=lambda _: None)
    model, tokenizer = load(str(folder / "model"))[:2]
    config = json.loads((folder / "model" / "config.json").read_text())
    about = export_gguf.metadata(config, tokenizer, "tiny", "here")
    export_gguf.write(flat(model.parameters()), config, about, folder / "made.gguf", beat=lambda: None)
    return read_gguf(given), read_gguf(folder / "made.gguf")


def bytes_of(gguf: Gguf, name: str) -> bytes:
    found = gguf.tensors[name]
    return gguf.path.read_bytes()[found.offset : found.offset + found.nbytes]


def ids(gguf: Gguf) -> list[int]:
    built = build_tokenizer(gguf, len(gguf.metadata["tokenizer.ggml.tokens"]))  # type: ignore[arg-type]
    return list(Tokenizer.from_str(built.tokenizer).encode(TEXT).ids)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tokenizer__ggml__pre": "llama-bpe", "llama__rope__freq_base": 500_000.0},
        {"tokenizer__ggml__pre": "qwen2", "llama__rope__scaling__factor": 4.0, "llama__rope__scaling__type": "linear"},
        SENTENCEPIECE,
    ],
    ids=["smollm", "llama-bpe", "qwen2", "sentencepiece"],
)
def test_a_model_comes_out_as_it_came_in(tmp_path: Path, changes: dict[str, Value | None]) -> None:
    """Rows in the wrong order or another vocabulary would answer, and be wrong."""
    metadata = tiny_metadata(**changes)
    tensors = tiny_tensors(metadata, "F16", output=True)
    if changes.get("tokenizer__ggml__pre") == "llama-bpe":  # as Llama 3.1 has them
        factors = tensor_of(llama3_factors(500_000.0, 16, 8.0))
        tensors["rope_freqs.weight"] = factors
    given, made = there_and_back(tmp_path, metadata, tensors)
    assert made.tensors.keys() == given.tensors.keys()
    for name, found in given.tensors.items():
        assert (made.tensors[name].shape, made.tensors[name].type) == (found.shape, found.type)
        assert bytes_of(made, name) == bytes_of(given, name), name
    lost = given.metadata.keys() - made.metadata.keys() - {"general.license"}
    assert not lost
    unlike = {key for key in given.metadata if made.metadata.get(key) != given.metadata[key]}
    assert unlike <= {"general.license", "tokenizer.ggml.scores"}  # of scores the order counts
    assert ids(made) == ids(given)


def tensor_of(values: list[float]) -> Raw:
    import numpy as np

    array = np.array(values, "<f4")
    return Raw("F32", array.shape, array.tobytes(), array.astype(float))


def metadata_of(folder: Path, **changes: Any) -> Any:
    model = tiny.make_model(folder)
    config = json.loads((model / "config.json").read_text()) | changes
    return export_gguf.metadata(config, load(str(model))[1], "tiny", "here")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "qwen3"}, "'qwen3' cannot be written as GGUF; llama and mistral can"),
        ({"model_type": "mixtral"}, "'mixtral' cannot be written"),
        ({"attention_bias": True}, "it has biases"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "scaled by yarn"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0}}, "scaled by llama3"),
        ({"hidden_act": "gelu"}, "the activation gelu"),
    ],
)
def test_what_gguf_cannot_say_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    """Left out of the file, it would be computed otherwise there, in silence."""
    with pytest.raises(ConversionRefused, match=said):
        metadata_of(tmp_path, **changes)


def test_a_tokenizer_that_splits_by_rules_of_its_own_is_refused(tmp_path: Path) -> None:
    """llama.cpp would split by others, and the model read words that it was never taught."""
    model = tiny.make_model(tmp_path)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    assert isinstance(tokenizer.model, models.BPE)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save(str(model / "tokenizer.json"))
    config = json.loads((model / "config.json").read_text())
    with pytest.raises(ConversionRefused, match=r"a step that GGUF does not know: .*Punctuation"):
        export_gguf.metadata(config, load(str(model))[1], "tiny", "here")


def test_rows_of_the_embedding_without_a_token_are_marked_unused(tmp_path: Path) -> None:
    """llama.cpp wants as many tokens as there are rows."""
    about = metadata_of(tmp_path)
    tokens, types = about["tokenizer.ggml.tokens"], about["tokenizer.ggml.token_type"].tolist()
    assert len(tokens) == len(types) == 288
    assert tokens[-1] == "[PAD287]"
    assert (types[0], types[100], types[-1]) == (3, 1, 5)
    assert about["tokenizer.ggml.pre"] == "gpt-2"
