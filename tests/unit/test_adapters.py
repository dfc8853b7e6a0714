"""The result in mlx_lm's format, and starting from an earlier one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model

from qlora_engine.job.errors import JobRejected
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.spec import JobSpec
from qlora_engine.training.adapters import save_adapters, start_from
from qlora_engine.training.dropout import DropoutKey
from qlora_engine.training.model import Base, activation_type, add_adapters, load_folder
from qlora_engine.training.step import TrainingStep
from qlora_engine.training.targets import Targets
from qlora_engine.training.tensor_file import on_host
from qlora_engine.training.tree import flat
from support import tiny
from support.small import training_step

TOKENS = mx.array([[1, 5, 9, 200, 31, 7]])
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora of named layers": {"lora_parameters": {"rank": 2, "keys": ["self_attn.q_proj", "mlp.down_proj"]}},
    "lora of the last layer": {"num_layers": 1, "lora_parameters": {"rank": 3, "scale": 5.0, "dropout": 0.1}},
    "dora": {"fine_tune_type": "dora"},
    "full": {"fine_tune_type": "full"},
    "recomputed": {"grad_checkpoint": True},
    "rank-stabilized": {"lora_parameters": {"rank": 9, "scale": 2.0, "rank_stabilized": True}},
    "adapted head": {"lora_parameters": {"rank": 2, "keys": ["model.embed_tokens", "self_attn.q_proj"]}},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "quantized": tiny.make_model(folder / "quantized", hidden=64, bits=4),
        "plain": tiny.make_model(folder / "plain", hidden=64, bits=None),
    }


def job_of(model: Path, **keys: Any) -> ResolvedJob:
    return ResolvedJob(spec=JobSpec(**{"model": str(model), "num_layers": -1} | keys), model_path=str(model))


def prepared(job: ResolvedJob) -> tuple[Base, TrainingStep]:
    full = job.spec.fine_tune_type == "full"
    base = load_folder(Path(str(job.model_path)), "m", quantize=not full, dequantize=not full)
    dropout = DropoutKey()
    add_adapters(base, job.spec, dropout, recompute=job.spec.grad_checkpoint)
    base.model.train()
    return base, training_step(
        base.model, dropout=dropout, optimizer="sgd", learning_rate=1.0, activations=activation_type(base.model)
    )


def train(step: TrainingStep) -> None:
    for _ in range(3):
        step.micro_batch(Targets.of(TOKENS, mx.ones(TOKENS.shape, mx.bool_)), mx.random.key(0))
        assert step.update().applied


@pytest.mark.parametrize("kind", KINDS)
def test_mlx_lm_loads_the_result_as_it_is(models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """`mlx_lm.generate --adapter-path` is what the adapters are for; it must compute what training computed."""
    model = models["plain" if kind == "full" else "quantized"]
    job = job_of(model, **KINDS[kind])
    base, step = prepared(job)
    train(step)
    save_adapters(tmp_path / "adapters", on_host(flat(step.masters)), job)
    ours = step.sync_model()
    ours.eval()
    theirs = load_adapters(load_model(model)[0], str(tmp_path / "adapters"))
    theirs.eval()
    wanted, got = ours(TOKENS), theirs(TOKENS)
    untrained = load_model(model)[0](TOKENS)
    assert mx.abs(wanted - untrained).max().item() > 1e-2  # it has learned something
    np.testing.assert_allclose(np.array(got), np.array(wanted), atol=2e-3)
    del base


def test_the_config_holds_what_mlx_lm_writes(models: dict[str, Path], tmp_path: Path) -> None:
    """Other tools read it too: to fuse, to convert, to serve."""
    job = job_of(models["quantized"], lora_parameters={"rank": 4, "scale": 8.0, "dropout": 0.1})
    _, step = prepared(job)
    folder = save_adapters(tmp_path / "adapters", on_host(flat(step.masters)), job)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["fine_tune_type"] == "lora"
    assert config["num_layers"] == -1
    assert config["lora_parameters"] == {"rank": 4, "scale": 8.0, "dropout": 0.1, "rank_stabilized": False}
    assert config["model"] == str(models["quantized"])
    assert sorted(entry.name for entry in folder.iterdir()) == ["adapter_config.json", "adapters.safetensors"]
    arrays = mx.load(str(folder / "adapters.safetensors"))
    assert {array.dtype for array in arrays.values()} == {mx.float32}


def test_the_saved_scale_is_the_one_in_effect(models: dict[str, Path], tmp_path: Path) -> None:
    """mlx_lm knows no `rank_stabilized`: with the job's own scale it would compute another model."""
    job = job_of(models["quantized"], lora_parameters={"rank": 9, "scale": 2.0, "rank_stabilized": True})
    base, step = prepared(job)
    assert base.model.layers[0].self_attn.q_proj.scale == 6.0
    folder = save_adapters(tmp_path, on_host(flat(step.masters)), job)
    saved = json.loads((folder / "adapter_config.json").read_text())["lora_parameters"]
    assert (saved["scale"], saved["rank_stabilized"]) == (6.0, False)


def test_saving_again_replaces(models: dict[str, Path], tmp_path: Path) -> None:
    """Each checkpoint writes them anew."""
    job = job_of(models["quantized"])
    _, step = prepared(job)
    save_adapters(tmp_path, on_host(flat(step.masters)), job)
    before = (tmp_path / "adapters.safetensors").read_bytes()
    train(step)
    save_adapters(tmp_path, on_host(flat(step.masters)), job)
    assert (tmp_path / "adapters.safetensors").read_bytes() != before
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_earlier_result_is_a_start(models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """`resume_adapter_file` goes on from its weights, with a fresh optimizer."""
    job = job_of(models["quantized"], fine_tune_type=kind)
    _, first = prepared(job)
    train(first)
    file = save_adapters(tmp_path, on_host(flat(first.masters)), job) / "adapters.safetensors"
    _, second = prepared(job_of(models["quantized"], fine_tune_type=kind, seed=9))
    fresh = {name: np.array(array) for name, array in second.state().items() if name.startswith("optimizer.")}
    start_from(file, second)
    for name, array in flat(first.masters).items():
        assert mx.array_equal(flat(second.masters)[name], array), name
    for name, array in fresh.items():
        assert np.array_equal(np.array(second.state()[name]), array), name


def bad_file(kind: str, folder: Path, good: dict[str, mx.array]) -> Path:
    path = folder / "bad.safetensors"
    match kind:
        case "another rank":
            mx.save_safetensors(str(path), {name: array[..., :2] for name, array in good.items()})
        case "another model":
            mx.save_safetensors(str(path), {f"x.{name}": array for name, array in good.items()})
        case "nothing":
            mx.save_safetensors(str(path), {})
        case "garbage":
            path.write_bytes(b"garbage" * 100)
        case "cut":
            mx.save_safetensors(str(path), good)
            path.write_bytes(path.read_bytes()[:-100])
        case "empty":
            path.write_bytes(b"")
        case "npz":
            path = folder / "bad.npz"
            mx.savez(str(path), **good)
        case "gone":
            pass
    return path


@pytest.mark.parametrize("kind", ["another rank", "another model", "nothing", "garbage", "cut", "empty", "npz", "gone"])
def test_a_file_that_does_not_fit_is_refused(models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """A start from half of an adapter, or from none, would be trained without a word."""
    _, step = prepared(job_of(models["quantized"]))
    path = bad_file(kind, tmp_path, flat(step.masters))
    before = {name: np.array(array) for name, array in step.state().items()}
    with pytest.raises(JobRejected) as caught:
        start_from(path, step)
    assert path.name in caught.value.what
    assert caught.value.where == f"resume_adapter_file: {path}"
    assert caught.value.remedy
    for name, array in before.items():
        assert np.array_equal(np.array(step.state()[name]), array)
