"""The base model: loaded whatever its quantization, brought into the form that trains here, refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.utils import load_model

from qlora_engine.job.errors import ModelRejected
from qlora_engine.job.spec import JobSpec
from qlora_engine.training.device import SLOW_EXP
from qlora_engine.training.dropout import DropoutKey
from qlora_engine.training.gated import Gated
from qlora_engine.training.model import (
    activation_type,
    add_adapters,
    count_parameters,
    load_folder,
    on_cpu,
    quantized_bits,
    replace_quantized,
)
from qlora_engine.training.tree import flat
from support import tiny

TOKENS = mx.array([[1, 5, 9, 200, 31]])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is not quantized, wide enough for groups of 64."""
    return tiny.make_model(tmp_path_factory.mktemp("plain") / "model", hidden=64, bits=None)


def quantized(plain: Path, folder: Path, **how: Any) -> Path:
    """`plain`, quantized as told, in mlx_lm's form."""
    model, config = load_model(plain)
    nn.quantize(model, **how)
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    config = {key: value for key, value in config.items() if key != "quantization"}
    (folder / "config.json").write_text(json.dumps(config | {"quantization": {"mode": "affine"} | how}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((plain / name).read_bytes())
    return folder


def relative_error(got: mx.array, exact: mx.array) -> float:
    return float(mx.abs(got - exact).max() / mx.abs(exact).max())


def test_a_model_that_is_not_quantized_is_quantized_on_load(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """QLoRA promises a 4-bit base, whatever the folder holds; `--json` promises nothing but JSON on the output."""
    base = load_folder(plain, "m", quantize=True, dequantize=False)
    assert (base.bits, base.quantized_on_load, base.dequantized) == (4, True, False)
    layers = [m for _, m in base.model.named_modules() if isinstance(m, nn.QuantizedLinear | nn.QuantizedEmbedding)]
    assert {(layer.bits, layer.group_size) for layer in layers} == {(4, 64)}
    assert len(layers) == 2 * 7 + 1
    assert flat(base.model.trainable_parameters()) == {}
    assert capsys.readouterr().out == ""


def test_full_fine_tuning_keeps_the_weights_as_they_are(plain: Path) -> None:
    """It trains the weights themselves."""
    base = load_folder(plain, "m", quantize=False, dequantize=False)
    assert (base.bits, base.quantized_on_load) == (None, False)
    assert quantized_bits(base.model) is None


@pytest.mark.parametrize(
    "how",
    [
        {"group_size": 32, "bits": 4},
        {"group_size": 64, "bits": 4},
        {"group_size": 64, "bits": 8},
        {"group_size": 64, "bits": 3},
        {"group_size": 32, "bits": 4, "mode": "mxfp4"},
        {"group_size": 32, "bits": 8, "mode": "mxfp8"},
        {"group_size": 16, "bits": 4, "mode": "nvfp4"},
    ],
    ids=lambda how: f"{how.get('mode', 'affine')}-{how['bits']}-{how['group_size']}",
)
def test_dequantized_weights_compute_what_the_quantized_ones_do(plain: Path, tmp_path: Path, how: Any) -> None:
    """Float32 weights on the CPU are for speed; the model must be the same one."""
    folder = quantized(plain, tmp_path / "q", **how)
    exact, config = load_model(folder)
    assert config["quantization"]["bits"] == how["bits"]
    base = load_folder(folder, "m", quantize=True, dequantize=True)
    assert (base.bits, base.quantized_on_load) == (how["bits"], False)
    assert base.dequantized is on_cpu()
    if base.dequantized:
        assert {array.dtype for array in flat(base.model.parameters()).values()} == {mx.float32}
        for name, layer in exact.named_modules():
            if isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding):
                weight = mx.dequantize(
                    layer.weight, layer.scales, layer.get("biases"),
                    group_size=layer.group_size, bits=layer.bits, mode=layer.mode, dtype=mx.float32,
                )  # fmt: skip
                assert mx.array_equal(flat(base.model.parameters())[f"{name}.weight"], weight), name
    assert relative_error(base.model(TOKENS), exact(TOKENS).astype(mx.float32)) < 2e-2
    add_adapters(base, JobSpec(num_layers=-1), DropoutKey(), recompute=False)
    assert relative_error(base.model(TOKENS), exact(TOKENS).astype(mx.float32)) < 2e-2  # adapters begin as nothing


def test_a_bias_survives() -> None:
    """Qwen2's projections have one."""
    linear = nn.Linear(64, 32, bias=True)
    model = nn.Sequential(nn.QuantizedLinear.from_linear(linear, group_size=32, bits=8))
    x = mx.random.normal((3, 64))
    before = model(x)
    replace_quantized(model)
    assert type(model.layers[0]) is nn.Linear
    assert np.allclose(np.array(model(x)), np.array(before), atol=1e-4)


def test_bfloat16_models_train_in_bfloat16_where_they_are_not_dequantized(plain: Path, tmp_path: Path) -> None:
    """A float32 adapter would promote every activation after it."""
    model, config = load_model(plain)
    model.apply(lambda array: array.astype(mx.bfloat16))
    folder = tmp_path / "bf16"
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((plain / name).read_bytes())
    base = load_folder(folder, "m", quantize=True, dequantize=False)
    assert activation_type(base.model) == mx.bfloat16
    assert activation_type(load_folder(folder, "m", quantize=False, dequantize=False).model) == mx.bfloat16
    if on_cpu():
        assert activation_type(load_folder(folder, "m", quantize=True, dequantize=True).model) == mx.float32


def test_parameters_are_counted_as_numbers_not_as_packed_words(plain: Path, tmp_path: Path) -> None:
    """A 135M model is one of 135M however its weights are stored."""
    exact = sum(array.size for array in flat(load_model(plain)[0].parameters()).values())
    for bits in (3, 4, 8):
        folder = quantized(plain, tmp_path / str(bits), group_size=32, bits=bits)
        assert count_parameters(load_folder(folder, "m", quantize=True, dequantize=False).model) == (exact, 0)
    base = load_folder(plain, "m", quantize=True, dequantize=True)
    add_adapters(
        base,
        JobSpec(num_layers=1, lora_parameters={"rank": 4, "keys": ["self_attn.q_proj"]}),
        DropoutKey(),
        recompute=False,
    )
    assert count_parameters(base.model) == (exact + 4 * (64 + 64), 4 * (64 + 64))


@pytest.mark.parametrize(
    ("keys", "layers", "leaves"),
    [
        ({"num_layers": 1}, {"1"}, {"lora_a", "lora_b"}),
        ({"num_layers": 2}, {"0", "1"}, {"lora_a", "lora_b"}),
        ({"num_layers": -1}, {"0", "1"}, {"lora_a", "lora_b"}),
        ({"num_layers": -1, "fine_tune_type": "dora"}, {"0", "1"}, {"lora_a", "lora_b", "m"}),
        ({"num_layers": 1, "fine_tune_type": "full"}, {"1"}, {"weight"}),
        ({"num_layers": -1, "fine_tune_type": "full"}, {"0", "1"}, {"weight"}),
    ],
)
def test_the_layers_that_a_job_names_are_trained(
    plain: Path, keys: dict[str, Any], layers: set[str], leaves: set[str]
) -> None:
    """As mlx_lm does for the same keys: the last `num_layers`, -1 for all."""
    full = keys.get("fine_tune_type") == "full"
    base = load_folder(plain, "m", quantize=not full, dequantize=not full)
    add_adapters(base, JobSpec(**keys), DropoutKey(), recompute=False)
    names = list(flat(base.model.trainable_parameters()))
    assert {name.split(".")[2] for name in names} == layers
    assert {name.rsplit(".", 1)[-1] for name in names} == leaves


def test_the_same_seed_draws_the_same_adapters(plain: Path) -> None:
    """Without it two runs of one job would differ before their first step."""

    def initial(seed: int) -> dict[str, bytes]:
        base = load_folder(plain, "m", quantize=True, dequantize=True)
        add_adapters(base, JobSpec(num_layers=-1, seed=seed), DropoutKey(), recompute=False)
        return {name: bytes(memoryview(array)) for name, array in flat(base.model.trainable_parameters()).items()}

    mx.random.seed(123)
    first = initial(5)
    mx.random.seed(321)
    assert initial(5) == first
    assert initial(6) != first


@pytest.mark.skipif(not SLOW_EXP, reason="elsewhere MLX's own feed-forward part stays")
@pytest.mark.parametrize("recompute", [False, True])
def test_feed_forward_parts_know_that_their_layer_is_recomputed(plain: Path, recompute: bool) -> None:
    """They compute long rows in chunks then, or the memory that was asked for is not there."""
    base = load_folder(plain, "m", quantize=True, dequantize=True)
    add_adapters(base, JobSpec(num_layers=-1), DropoutKey(), recompute=recompute)
    parts = [module for _, module in base.model.named_modules() if isinstance(module, Gated)]
    assert len(parts) == len(base.model.layers)
    assert {part.recomputed for part in parts} == {recompute}


def test_more_layers_than_there_are_is_refused(plain: Path) -> None:
    """mlx_lm trains them all without a word."""
    base = load_folder(plain, "m", quantize=True, dequantize=False)
    with pytest.raises(ModelRejected, match="has 2 layers") as caught:
        add_adapters(base, JobSpec(num_layers=3), DropoutKey(), recompute=False)
    assert caught.value.where == "num_layers"


@pytest.mark.parametrize(
    "keys", [["q_proj"], ["self_attn.qproj"], ["self_attn.q_proj", "mlp.gate"], ["input_layernorm"]]
)
def test_layer_names_that_the_model_lacks_are_refused(plain: Path, keys: list[str]) -> None:
    """One mistyped name of two would train half of what was asked for."""
    base = load_folder(plain, "m", quantize=True, dequantize=False)
    with pytest.raises(ModelRejected) as caught:
        add_adapters(base, JobSpec(num_layers=-1, lora_parameters={"keys": keys}), DropoutKey(), recompute=False)
    assert caught.value.where == "lora_parameters.keys"
    assert caught.value.remedy


def test_full_fine_tuning_of_a_quantized_model_is_refused(plain: Path, tmp_path: Path) -> None:
    """Quantized weights cannot be trained; only its norms would be, without a word."""
    folder = quantized(plain, tmp_path / "q", group_size=64, bits=4)
    base = load_folder(folder, "m", quantize=False, dequantize=False)
    with pytest.raises(ModelRejected, match="quantized"):
        add_adapters(base, JobSpec(num_layers=-1, fine_tune_type="full"), DropoutKey(), recompute=False)


@pytest.mark.parametrize("harm", ["no tokenizer", "unknown type", "cut weights", "no weights", "config"])
def test_a_model_that_cannot_be_loaded_is_refused_with_its_folder(plain: Path, tmp_path: Path, harm: str) -> None:
    """Whatever mlx_lm or transformers raise, a person gets one clear error."""
    folder = tmp_path / "m"
    folder.mkdir()
    for file in plain.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    match harm:
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "unknown type":
            (folder / "config.json").write_text('{"model_type": "gpt17"}')
        case "cut weights":
            content = (folder / "model.safetensors").read_bytes()
            (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
        case "no weights":
            mx.save_safetensors(str(folder / "model.safetensors"), {"x": mx.zeros(1)})
        case "config":
            (folder / "config.json").write_text("{")
    with pytest.raises(ModelRejected) as caught:
        load_folder(folder, "m", quantize=True, dequantize=True)
    assert caught.value.where == str(folder)
    assert "mlx_lm generate" in str(caught.value.remedy)


def test_the_reference_is_what_it_says(plain: Path) -> None:
    """The comparisons above are with a llama of mlx_lm's."""
    assert type(load_model(plain)[0]) is llama.Model
