"""What a run settles before its first step: measured once, said, written down, and the same when it is resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from qlora_engine.job.events import Event, EventLog
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.spec import JobSpec
from qlora_engine.training import own_kernels
from qlora_engine.training.batches import Plan
from qlora_engine.training.choices import Choices
from qlora_engine.training.dropout import DropoutKey
from qlora_engine.training.frozen import FrozenLinear, quantized_layers
from qlora_engine.training.lowrank import LowRank
from qlora_engine.training.measured import Measured
from qlora_engine.training.memory import Limits
from qlora_engine.training.model import Base, add_adapters, load_folder
from qlora_engine.training.recompute import checkpoint_layers
from qlora_engine.training.runtime import Runtime, record, settle
from qlora_engine.training.targets import Targets
from support import tiny
from support.small import training_step

PLAN = Plan([12, 9, 30, 7, 16, 22], 2, 1, 0, 6)
LONG = Plan([12, 9, 30, 7, 16, 22], 2, 1, 0, own_kernels.LONG_ENOUGH)
GIGA = int(1e9)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("choices") / "model", hidden=64)


class OnAGpu:
    """A run as a backend sees it that keeps its matrices quantized."""

    def __init__(self, folder: Path, model: Path, limit: int) -> None:
        self.events: list[Event] = []
        self.run = RunFolder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.base: Base = load_folder(model, "m", quantize=True, dequantize=False)
        spec = JobSpec(num_layers=-1, batch_size=2)
        add_adapters(self.base, spec, DropoutKey(), recompute=False)
        log = EventLog([self.events.append])
        self.found: Runtime = replace(settle(self.run, log), backend="metal")
        self.choices = Choices(spec, self.run, log, Measured(folder.parent / "measured.json"), lambda: None)
        self.limits = Limits(limit, 0, None, limit, "the test")

    def settle(self) -> OnAGpu:
        self.found = self.choices.products(self.found, self.base, PLAN, self.limits)
        return self

    def loss(self) -> float:
        """Of a batch, in training."""
        self.base.model.train()
        tokens = np.arange(1, 61).reshape(2, 30) % 200
        targets = Targets.of(tokens, np.ones(tokens.shape, np.bool_))
        return training_step(self.base.model, activations=mx.bfloat16).micro_batch(targets, mx.random.key(0)).loss


@pytest.fixture(autouse=True)
def same_seed() -> Iterator[None]:
    yield
    mx.random.seed(0)


@pytest.mark.parametrize("limit", [16 * GIGA, 1000])
def test_a_run_multiplies_as_it_found_fastest_and_again_so_when_resumed(
    tmp_path: Path, model: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run that measured anew might round differently."""
    plain = OnAGpu(tmp_path / "plain", model, limit)
    before = plain.loss()
    first = OnAGpu(tmp_path / "run", model, limit).settle()
    (event,) = first.events
    assert event["event"] == "products.chosen"
    assert event["kept"] is (not quantized_layers(first.base.model))
    assert limit > GIGA or not event["kept"]
    assert set(event["seconds"]) == set(event["ways"])
    assert first.loss() == pytest.approx(before, rel=0.02)
    recorded: dict[str, Any] = json.loads(first.run.runtime.read_bytes())["chosen"]["products"]

    monkeypatch.setattr("qlora_engine.training.frozen_choice._timed", None)  # measuring again would fail
    resumed = OnAGpu(tmp_path / "run", model, limit).settle()
    assert resumed.found.chosen["products"] == recorded
    assert "products.chosen" not in {event["event"] for event in resumed.events}
    assert ways_of(resumed.base.model) == ways_of(first.base.model)
    other = OnAGpu(tmp_path / "other", model, limit).settle()  # remembered on this machine
    assert other.events[0]["seconds"] == event["seconds"]


def test_a_choice_leaves_what_the_run_began_with(tmp_path: Path, model: Path) -> None:
    """Later starts are compared with the first, not with the last that chose something."""
    run = OnAGpu(tmp_path / "run", model, GIGA)
    later = replace(run.found, versions=run.found.versions | {"mlx": "another"})
    record(run.run, later, "packing", {})
    assert json.loads(run.run.runtime.read_bytes())["versions"] == run.found.versions


def test_whether_layers_compute_as_one_is_measured_once(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way rounds differently, so a resumed run does as before; where memory is short none does."""
    first = OnAGpu(tmp_path / "run", model, GIGA)
    monkeypatch.setattr("qlora_engine.training.siblings.measure", lambda *_: (2.0, 1.0))
    first.found = first.choices.siblings(first.found, first.base, PLAN)
    assert [(event["event"], event["together"]) for event in first.events] == [("siblings.chosen", True)]
    monkeypatch.setattr("qlora_engine.training.siblings.measure", None)  # measuring again would fail
    resumed = OnAGpu(tmp_path / "run", model, GIGA)
    resumed.found = resumed.choices.siblings(resumed.found, resumed.base, PLAN)
    assert "siblings.chosen" not in {event["event"] for event in resumed.events}
    assert siblings_of(resumed.base.model) == siblings_of(first.base.model) > 0

    short = OnAGpu(tmp_path / "short", model, GIGA)
    short.choices.siblings(replace(short.found, chosen={"recomputed": 1}), short.base, PLAN)
    assert siblings_of(short.base.model) == 0


def test_kernels_of_our_own_are_chosen_once(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They round differently, so a run that began with them, or without, goes on so, as long as it can."""
    used: list[list[str]] = []
    right = {"rotary", "norms"}
    timings = {"rotary": (2.0, 1.0), "norms": (1.0, 2.0), "gated": (2.0, 1.0)}
    module = "qlora_engine.training.own_kernels"
    monkeypatch.setattr(f"{module}.use", lambda _model, names, _longest: used.append(names))
    monkeypatch.setattr(f"{module}.agreeing", lambda _model, names, *_: [name for name in names if name in right])
    monkeypatch.setattr(f"{module}.measure", lambda *_: timings)

    def chosen(folder: str, plan: Plan = LONG, *, recomputed: bool = False, **found: Any) -> list[str]:
        run = OnAGpu(tmp_path / folder, model, GIGA)
        if recomputed:
            checkpoint_layers(run.base.model.layers)
        used.clear()
        run.choices.kernels(replace(run.found, **{"backend": "cuda", **found}), run.base, plan)
        said.extend(run.events)
        return used[-1] if used else []

    said: list[Event] = []
    assert chosen("run") == ["rotary"]
    assert [event["names"] for event in said] == [["rotary"]]
    monkeypatch.setattr(f"{module}.measure", None)  # measuring again would fail
    recorded = json.loads((tmp_path / "run" / "runtime.json").read_bytes())["chosen"]
    assert chosen("run", chosen=recorded | {"packing": {}}) == ["rotary"]
    assert chosen("like it") == ["rotary"]  # remembered on this machine
    assert chosen("older", chosen={"packing": {}}) == []
    assert chosen("short of memory", recomputed=True) == []
    assert chosen("short run", PLAN) == []
    assert chosen("another backend", chosen=recorded, backend="metal") == []  # where there are none
    said.clear()
    right.clear()  # as after an update of the driver
    monkeypatch.setattr(f"{module}.agreeing", lambda *asked: asked[-1]("rotary", "no image for this device") or [])
    assert chosen("run", chosen=recorded | {"packing": {}}) == []
    (event,) = (event for event in said if event["event"] == "environment.changed" and event["name"] == "kernels")
    assert (event["then"], event["now"]) == (["rotary"], [])
    (event,) = (event for event in said if event["event"] == "kernels.failed")
    assert (event["name"], event["why"]) == ("rotary", "no image for this device")


def test_what_a_driver_refused_is_measured_again(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the next run: it may have another driver by then, and is to say what is not used."""
    module = "qlora_engine.training.own_kernels"
    monkeypatch.setattr(f"{module}.use", lambda *_: None)
    monkeypatch.setattr(f"{module}.agreeing", lambda _model, names, *_: list(names))
    monkeypatch.setattr(f"{module}.measure", lambda *asked: asked[-1]("rotary", "no image for this device") or {})
    for folder in ("first", "second"):
        run = OnAGpu(tmp_path / folder, model, GIGA)
        run.choices.kernels(replace(run.found, backend="cuda"), run.base, LONG)
        assert [event["event"] for event in run.events] == ["kernels.failed", "kernels.chosen"]


def siblings_of(model: nn.Module) -> int:
    """How many layers compute with others."""
    return sum(isinstance(m, LowRank) and m.siblings is not None for _, m in model.named_modules())


def ways_of(model: nn.Module) -> dict[str, Any]:
    """How each layer multiplies."""
    layers = quantized_layers(model)
    return {name: layer.ways if isinstance(layer, FrozenLinear) else None for name, layer in layers.items()}


def test_on_the_cpu_nothing_is_measured_for_matrices(tmp_path: Path, model: Path) -> None:
    """They are float32 there from the start."""
    run = OnAGpu(tmp_path / "run", model, GIGA)
    run.found = replace(run.found, backend="cpu")
    run.settle()
    assert not run.events
    assert "products" not in run.found.chosen
