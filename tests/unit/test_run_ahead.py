"""How far MLX's CUDA backend may run ahead of the GPU, by the job and the GPU's memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qlora_engine import run_ahead
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.fuse_spec import FuseSpec
from qlora_engine.job.resolved import ResolvedFuse, ResolvedJob
from qlora_engine.job.spec import JobSpec
from qlora_engine.run_ahead import FAR, NEAR, OURS

MISTRAL_7B = {
    "model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32768,
    "tie_word_embeddings": False, "quantization": {"group_size": 64, "bits": 4},
}  # fmt: skip
SHORT: dict[str, Any] = {"batch_size": 4, "max_seq_length": 513, "num_layers": -1}


@pytest.fixture(autouse=True)
def nobody_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable is set."""
    for name in (*FAR, OURS):
        monkeypatch.delenv(name, raising=False)


def large_gpu(monkeypatch: pytest.MonkeyPatch, *, giga: float = 80.0) -> None:
    """A GPU of so much memory."""
    monkeypatch.setattr(run_ahead, "_memory_of_the_gpu", lambda: int(giga * 1e9))


def resolved(folder: Path, **keys: Any) -> ResolvedJob:
    """A job on a 7B base."""
    (folder / "config.json").write_text(json.dumps(MISTRAL_7B))
    return ResolvedJob(spec=JobSpec(**{"model": "a-model", "data": "rows", **SHORT, **keys}), model_path=str(folder))


def test_short_batches_on_a_large_gpu_run_far_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the processor is the slower one."""
    large_gpu(monkeypatch)
    assert run_ahead.variables(resolved(tmp_path)) == FAR | {OURS: " ".join(FAR)}


@pytest.mark.parametrize(
    "keys",
    [
        {"memory": {"limit_gb": 40}},
        {"grad_checkpoint": True},
        {"max_seq_length": 2049},
        {"batch_size": 8},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_where_memory_counts_or_batches_are_long_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    """What is under way stays held."""
    large_gpu(monkeypatch)
    assert run_ahead.variables(resolved(tmp_path, **keys)) == NEAR | {OURS: " ".join(NEAR)}


@pytest.mark.parametrize(("giga", "share", "far"), [(80.0, 1.0, True), (24.0, 1.0, False), (80.0, 0.3, False)])
def test_the_memory_must_hold_dequantized_weights_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, giga: float, share: float, far: bool
) -> None:
    """At its limit MLX waits for all that is under way before each operation: a step would take minutes."""
    large_gpu(monkeypatch, giga=giga)
    assert (FAR.items() <= run_ahead.variables(resolved(tmp_path), share).items()) == far


def test_without_a_driver_it_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU whose memory is not known may be full."""

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(run_ahead.ctypes, "CDLL", missing)
    assert NEAR.items() <= run_ahead.variables(resolved(tmp_path)).items()


@pytest.mark.parametrize("refusing", ["cuInit", "cuDeviceGet", "cuDeviceTotalMem_v2", ""])
def test_the_driver_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusing: str) -> None:
    """By a library with its functions, any of which can refuse: of a driver without a GPU the first one does."""
    source = tmp_path / "driver.c"
    source.write_text(
        f"""
        #include <stddef.h>
        int cuInit(unsigned flags) {{ return {int(refusing == "cuInit")}; }}
        int cuDeviceGet(int* device, int number) {{ *device = 7 + number; return {int(refusing == "cuDeviceGet")}; }}
        int cuDeviceTotalMem_v2(size_t* bytes, int device) {{
          if (device != 7) return 1;
          *bytes = 80000000000;
          return {int(refusing == "cuDeviceTotalMem_v2")};
        }}
        """
    )
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    load = run_ahead.ctypes.CDLL
    monkeypatch.setattr(run_ahead.ctypes, "CDLL", lambda name: load(str(tmp_path / name)))
    found = run_ahead.variables(resolved(tmp_path))
    assert (NEAR if refusing else FAR).items() <= found.items()


def test_what_a_person_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever measures another value on a machine must be able to use it."""
    large_gpu(monkeypatch)
    monkeypatch.setenv("MLX_MAX_OPS_PER_BUFFER", "40")
    found = run_ahead.variables(resolved(tmp_path))
    assert found == FAR | {"MLX_MAX_OPS_PER_BUFFER": "40", OURS: "MLX_USE_CUDA_GRAPHS MLX_MAX_MB_PER_BUFFER"}


def test_what_we_set_is_set_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that starts itself again with less memory has what it set before in its environment."""
    large_gpu(monkeypatch)
    monkeypatch.setenv("MLX_MAX_MB_PER_BUFFER", "300")
    for name, value in run_ahead.variables(resolved(tmp_path)).items():
        monkeypatch.setenv(name, value)
    assert run_ahead.variables(resolved(tmp_path))[OURS] == "MLX_USE_CUDA_GRAPHS MLX_MAX_OPS_PER_BUFFER"
    found = run_ahead.variables(None)
    assert {name: found[name] for name in NEAR} == NEAR | {"MLX_MAX_MB_PER_BUFFER": "300"}


def test_a_run_that_was_short_of_memory_is_not_known_any_more(tmp_path: Path) -> None:
    """It steps down, and must not be given more to hold."""
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    job = resolved(tmp_path)
    job.store(run.spec)
    assert run_ahead.job_of(run) == job
    run.ladder.write_text("{}")
    assert run_ahead.job_of(run) is None


@pytest.mark.parametrize("content", [None, "{", '{"format": 99}'], ids=["missing", "damaged", "newer"])
def test_a_run_that_cannot_be_read_is_left_to_training(tmp_path: Path, content: str | None) -> None:
    """It says what is wrong, and what to do."""
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    if content is not None:
        run.spec.write_text(content)
    assert run_ahead.job_of(run) is None


@pytest.mark.parametrize("config", [None, "{", "{}"], ids=["missing", "damaged", "without widths"])
def test_a_model_whose_shape_is_not_known_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str | None
) -> None:
    """Nor one that is still to be fetched, nor a job that fuses."""
    large_gpu(monkeypatch)
    job = resolved(tmp_path)
    (tmp_path / "config.json").unlink()
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert NEAR.items() <= run_ahead.variables(job).items()
    assert NEAR.items() <= run_ahead.variables(job.model_copy(update={"model_path": None})).items()
    fuse = ResolvedFuse(spec=FuseSpec(fuse="a-run"), source="a-run", model="a-model", model_path=str(tmp_path))
    assert NEAR.items() <= run_ahead.variables(fuse).items()


def test_asking_imports_no_mlx() -> None:
    """It reads the variables then."""
    code = "import sys, qlora_engine.launch; assert not any(name.split('.')[0] == 'mlx' for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
