"""What a training process gets in its environment."""

from __future__ import annotations

import importlib.metadata
from importlib.metadata import Distribution, PackageNotFoundError

import pytest

from qlora_engine import launch


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose Python has MLX's CUDA build and no other."""

    def distribution(name: str) -> Distribution:
        if name == "mlx-cpu" or (name.startswith("mlx-cuda") and name != "mlx-cuda-13"):
            raise PackageNotFoundError(name)
        return found("mlx")

    found = importlib.metadata.distribution
    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    for name in launch.RUN_AHEAD:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("cuda")
def test_on_cuda_mlx_runs_ahead_less() -> None:
    """By itself it holds half as much memory again for operations that have not run yet."""
    assert launch.environment("auto", None) == launch.RUN_AHEAD


@pytest.mark.usefixtures("cuda")
def test_what_a_person_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever measures another value on a machine must be able to use it."""
    monkeypatch.setenv("MLX_MAX_OPS_PER_BUFFER", "40")
    assert launch.environment("auto", None) == launch.RUN_AHEAD | {"MLX_MAX_OPS_PER_BUFFER": "40"}


def test_other_backends_are_left_alone() -> None:
    """Nothing was measured there."""
    assert launch.run_ahead() == {}
