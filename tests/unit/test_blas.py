"""The BLAS library under MLX's CPU backend: found or chosen, and the same again when a run resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qlora_engine import blas
from qlora_engine.job.errors import BadSetting, Exit
from qlora_engine.job.folder import RunFolder

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not blas.installed("mlx-cpu"), reason="MLX's CPU backend on Linux alone"
)


@pytest.fixture(autouse=True)
def _no_preload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "libopenblas.so"
    path.write_bytes(b"")
    return path


def run_with(tmp_path: Path, found: dict[str, Any] | None) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.runtime.write_text(json.dumps({"format": 1, "blas": found}))
    return run


def test_off_changes_nothing() -> None:
    """A setting, not a hidden trick."""
    assert blas.find_library("off") is None
    assert blas.training_environment("off", None) == {}


def test_a_path_is_taken_as_it_is(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute, since the training process may start elsewhere."""
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert blas.training_environment(str(library), None) == {
        "LD_PRELOAD": str(library),
        "OPENBLAS_NUM_THREADS": str(len(os.sched_getaffinity(0))),
    }
    monkeypatch.chdir(library.parent)
    assert blas.find_library(library.name) == library


@pytest.mark.parametrize(("said", "threads"), [("1", 1), ("", None), ("0", None), ("many", None)])
def test_the_variable_that_openblas_itself_knows_says_how_many_threads(
    library: Path, monkeypatch: pytest.MonkeyPatch, said: str, threads: int | None
) -> None:
    """Who shares a machine sets it for all programs; what is no number of threads is a thread for each core."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", said)
    wanted = str(threads or len(os.sched_getaffinity(0)))
    assert blas.training_environment(str(library), None)["OPENBLAS_NUM_THREADS"] == wanted


@pytest.mark.parametrize("choice", ["/nowhere/libopenblas.so", "/tmp", "yes", ""])
def test_a_path_without_a_library_is_a_bad_setting(choice: str) -> None:
    """The dynamic loader would only print a line, and training be 40 times slower."""
    with pytest.raises(BadSetting) as caught:
        blas.find_library(choice)
    assert caught.value.exit_code == Exit.CONFIG
    assert caught.value.where == "QLORAD_CPU_BLAS"


@pytest.mark.parametrize("name", ["my libopenblas.so", "a:libopenblas.so"])
def test_a_path_that_cannot_be_preloaded_is_a_bad_setting(tmp_path: Path, name: str) -> None:
    """LD_PRELOAD ends a path at spaces and colons."""
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(BadSetting, match="LD_PRELOAD"):
        blas.find_library(str(tmp_path / name))


def test_auto_finds_a_library_that_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it finds must be one that this machine can use."""
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    found = blas.find_library("auto")
    if found is None:
        pytest.skip("no OpenBLAS here")
    script = "from qlora_engine import blas; import json; print(json.dumps(blas.as_json(blas.loaded())))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | blas.training_environment("auto", None),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    described = json.loads(done.stdout)
    assert described["library"] == str(found)
    assert described["threads"] == len(os.sched_getaffinity(0))
    assert described["core"]


def test_what_the_parent_preloads_is_kept(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocator, say; and the library comes first, once, however often a process starts another."""
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so")
    wanted = blas.training_environment(str(library), None)["LD_PRELOAD"]
    assert wanted == f"{library}:/usr/lib/libjemalloc.so"
    monkeypatch.setenv("LD_PRELOAD", wanted)
    assert blas.training_environment(str(library), None)["LD_PRELOAD"] == wanted


def test_a_resumed_run_takes_the_library_that_it_began_with(tmp_path: Path, library: Path) -> None:
    """Another thread count or another kernel rounds otherwise, and a resumed run would not be the same."""
    run = run_with(tmp_path, {"library": str(library), "threads": 7, "core": "Haswell"})
    assert blas.recorded(run) == blas.Blas(str(library), 7, "Haswell")
    for choice in ("auto", "off"):
        assert blas.training_environment(choice, run) == {
            "LD_PRELOAD": str(library),
            "OPENBLAS_NUM_THREADS": "7",
            "OPENBLAS_CORETYPE": "Haswell",
        }


def test_a_run_that_began_without_a_library_goes_on_without(tmp_path: Path, library: Path) -> None:
    """The same holds the other way round."""
    assert blas.training_environment(str(library), run_with(tmp_path, None)) == {}


def test_a_run_that_has_not_started_takes_the_setting(tmp_path: Path, library: Path) -> None:
    """Nothing is recorded yet."""
    run = RunFolder(tmp_path / "run")
    assert blas.recorded(run) is None
    assert blas.training_environment(str(library), run)["LD_PRELOAD"] == str(library)


def test_a_recorded_library_that_is_gone_is_replaced(tmp_path: Path, library: Path) -> None:
    """Training goes on, and `environment.changed` says that results may differ in rounding."""
    run = run_with(tmp_path, {"library": "/nowhere/libopenblas.so", "threads": 7, "core": "Haswell"})
    assert blas.training_environment(str(library), run)["LD_PRELOAD"] == str(library)


def test_without_a_preloaded_library_none_is_described() -> None:
    """`training.started` says null, not a guess."""
    assert blas.loaded() is None
    assert blas.as_json(None) is None
