"""What a training process gets in its environment."""

from __future__ import annotations

import importlib.metadata
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

import pytest

from qlora_engine import launch, run_ahead
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.spec import JobSpec


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose Python has MLX's CUDA build and no other."""

    def distribution(name: str) -> Distribution:
        if name == "mlx-cpu" or (name.startswith("mlx-cuda") and name != "mlx-cuda-13"):
            raise PackageNotFoundError(name)
        return found("mlx")

    found = importlib.metadata.distribution
    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    for name in (*run_ahead.FAR, run_ahead.OURS):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Of a job that has not begun."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    ResolvedJob(spec=JobSpec(model="a-model", data="rows")).store(folder.spec)
    return folder


@pytest.mark.usefixtures("cuda")
def test_on_cuda_mlx_is_told_how_far_to_run_ahead(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the job in the process that trains it, and otherwise not far."""
    monkeypatch.setattr(run_ahead, "_has_room", lambda job, share: share == 0.5 and job == run_ahead.job_of(run))
    assert run_ahead.NEAR.items() <= launch.environment("auto", None).items()
    assert run_ahead.NEAR.items() <= launch.environment("auto", run).items()
    assert run_ahead.NEAR.items() <= launch.training_environment("auto", run, 1.0).items()
    assert run_ahead.FAR.items() <= launch.training_environment("auto", run, 0.5).items()


def test_other_backends_are_left_alone(run: RunFolder) -> None:
    """Nothing was measured there."""
    names = {*launch.environment("auto", None), *launch.training_environment("auto", run, 1.0)}
    assert not names & {*run_ahead.FAR, run_ahead.OURS}
