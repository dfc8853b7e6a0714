"""Fusing as a job of the queue: after the job that trains, done again when it is killed, and whole or absent."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import psutil
import pytest
from mlx_lm import load

from qlora_client.api import Client
from qlora_engine.job.errors import RunDamaged, SystemRefused
from qlora_engine.job.events import EventLog
from qlora_engine.job.folder import Home, RunFolder
from qlora_engine.job.fuse_spec import FuseSpec
from qlora_engine.job.models import describe
from qlora_engine.job.pulse import Pulse
from qlora_engine.job.resolved import ResolvedFuse, ResolvedJob
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.states import State
from qlora_engine.training.adapters import save_adapters
from qlora_engine.training.dropout import DropoutKey
from qlora_engine.training.fuse import fuse
from qlora_engine.training.gguf import read_gguf
from qlora_engine.training.model import add_adapters, load_base
from qlora_engine.training.tree import flat
from support import tiny
from support.service import REAL, Daemon, daemon_in, short_home, wait_until


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A real daemon in whose home a job trains a tiny model."""
    with short_home() as home, daemon_in(home, module=REAL) as found:
        model, data = tiny.make_model(home / "model"), tiny.make_data(home / "data")
        job = tiny.write_job(home / "job.yaml", tiny.job(model, data, learning_rate=0.02))
        found.start()
        found.drop("one.yaml", job.read_text())
        found.wait_for_state("one", *(set(State) - {State.ACCEPTED}))
        yield found


@pytest.fixture
def client(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Client:
    for name, value in daemon.environment.items():
        if name.startswith("QLORAD_"):
            monkeypatch.setenv(name, value)
    return Client()


@pytest.fixture
def stuck(daemon: Daemon) -> Iterator[Path]:
    """The adapters are a pipe that nobody writes: who reads them stands in the midst of it. Where they are kept."""
    adapters = daemon.home.run(daemon.job("one").id).adapters / "adapters.safetensors"
    kept = adapters.rename(adapters.with_suffix(".kept"))
    os.mkfifo(adapters)
    yield kept
    if kept.exists():
        kept.replace(adapters)


def logits(model: Path, adapters: Path | None = None) -> mx.array:
    loaded, tokenizer = load(str(model), adapter_path=str(adapters) if adapters else None)[:2]
    with mx.stream(mx.cpu):
        return loaded(mx.array([tokenizer.encode("12345 is odd")])).astype(mx.float32)


def process_in_midst(daemon: Daemon, name: str) -> psutil.Process:
    """The process of the job's attempt, when it reads the adapters."""
    run = daemon.home.run(daemon.job(name).id)
    daemon.wait_for("phase.started", job=run.id, phase="load")
    process = psutil.Process(daemon.wait_for("fuse.started", job=run.id)["pid"])
    wait_until("it has begun to load", run.making.is_dir)
    return process


def test_a_job_is_fused_when_it_has_ended_and_becomes_a_model_of_the_home(daemon: Daemon, client: Client) -> None:
    """Asked for while it trains, it waits; and 16 bits wide it computes what base and adapters compute."""
    one = daemon.job("one")
    assert not one.is_final
    fused = client.fuse("one", dequantize=True, add_as="made")
    assert client.job(fused).after == (one.id,)
    assert client.wait(fused, 60).state is State.DONE
    assert daemon.job("one").state is State.DONE
    run = daemon.home.run(fused)
    (done,) = daemon.events("fuse.done", job=fused)
    assert (done["model"], done["added"]) == (str(run.model), str(daemon.home.models / "made"))
    assert not run.making.exists()
    expected = logits(daemon.home.path / "model", daemon.home.run(one.id).adapters)
    without = logits(daemon.home.path / "model")
    assert mx.abs(logits(run.model) - expected).max().item() < 0.02
    assert mx.abs(without - expected).max().item() > 0.5, "nothing was learned, so this shows nothing"
    assert (run.model / "model.safetensors").samefile(daemon.home.models / "made" / "model.safetensors")
    made = describe(daemon.home.models / "made")
    assert (made.source, made.bits, made.problem) == (f"{one.id} on {daemon.home.path / 'model'}", None, None)


def test_an_export_that_is_killed_is_done_again_from_the_start(daemon: Daemon, client: Client, stuck: Path) -> None:
    """A dropped file does as well as the command; nothing half is ever seen, and what was left is removed."""
    daemon.drop("two.yaml", "fuse: one\nexport: gguf\n")
    daemon.wait_for_state("two", State.RUNNING)
    process = process_in_midst(daemon, "two")
    run = daemon.home.run(daemon.job("two").id)
    (run.making / "gguf").mkdir()
    (run.making / "gguf" / "half.gguf").write_bytes(b"half")
    assert not run.gguf.exists()
    stuck.replace(stuck.with_suffix(".safetensors"))
    process.send_signal(signal.SIGKILL)
    two = client.wait(run.id, 60)
    assert (two.state, two.attempt) == (State.DONE, 2)
    assert [path.name for path in sorted(run.gguf.iterdir())] == ["Modelfile", "one.gguf"]
    assert (run.gguf / "Modelfile").read_text() == "FROM ./one.gguf\n"
    assert read_gguf(run.gguf / "one.gguf").metadata["general.name"] == "one"
    assert not run.making.exists()


def test_a_fusing_is_cancelled_at_once_and_leaves_no_model(daemon: Daemon, client: Client, stuck: Path) -> None:
    """It has nothing to save, so nobody waits for it; and the GPU is free for the next."""
    fused = client.fuse("one", best=False, name="three")
    daemon.wait_for_state("three", State.RUNNING)
    process_in_midst(daemon, "three")
    began = time.monotonic()
    client.cancel(fused)
    assert client.wait(fused, 20).state is State.CANCELLED
    assert time.monotonic() - began < 10
    assert not daemon.home.run(fused).model.exists()


def trained(folder: Path, kind: str, stored: mx.Dtype, *, bits: int | None) -> tuple[Home, str, Path]:
    """A home with a run of adapters, its id, and its base, whose numbers have the type `stored`."""
    home, model = Home(folder / "home"), tiny.make_model(folder / "model", bits=bits, hidden=64)
    weights = mx.load(str(model / "model.safetensors"))
    assert isinstance(weights, dict)
    narrow = {key: array if array.dtype == mx.uint32 else array.astype(stored) for key, array in weights.items()}
    mx.eval(narrow)
    mx.save_safetensors(str(model / "model.safetensors"), narrow)
    spec = JobSpec(model=str(model), fine_tune_type=kind, num_layers=-1, data="data")
    job, run = ResolvedJob(spec=spec, model_path=str(model), data={}), home.run("20261122-100000-one")
    run.path.mkdir(parents=True)
    job.store(run.spec)
    base = load_base(job, dequantize=False)
    add_adapters(base, spec, DropoutKey(), recompute=False)
    trained = flat(base.model.trainable_parameters())
    save_adapters(run.adapters, {key: np.array(array.astype(mx.float32)) for key, array in trained.items()}, job)
    return home, run.id, model


def fused(home: Home, source: str, model: Path, **keys: Any) -> RunFolder:
    """The run that fuses."""
    result = home.run("20261122-110000-fused")
    result.path.mkdir(exist_ok=True)
    job = ResolvedFuse(spec=FuseSpec(fuse="one", **keys), source=source, model=str(model), model_path=str(model))
    fuse(job, home, result, log=EventLog([]), pulse=Pulse(None, 0))
    return result


def types_of_fused(folder: Path, kind: str, stored: mx.Dtype, *, bits: int | None, dequantize: bool) -> set[mx.Dtype]:
    """The types of what becomes of a base whose numbers have the type `stored`, by what was trained in float32."""
    result = fused(*trained(folder, kind, stored, bits=bits), dequantize=dequantize)
    made = mx.load(str(result.model / "model.safetensors"))
    assert isinstance(made, dict)
    return {array.dtype for array in made.values() if array.ndim > 1}


@pytest.mark.parametrize("stored", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(("kind", "bits"), [("lora", 4), ("lora", None), ("dora", 4), ("full", None)])
def test_what_is_fused_has_the_types_of_its_base(tmp_path: Path, kind: str, bits: int | None, stored: mx.Dtype) -> None:
    """What is trained in float32 may not double the result, for which neither disk nor memory was reckoned."""
    packed = set() if kind == "full" else {mx.uint32}
    found = types_of_fused(tmp_path / "as it was", kind, stored, bits=bits, dequantize=False)
    assert found == {stored} | packed
    assert types_of_fused(tmp_path / "wide", kind, stored, bits=bits, dequantize=True) == {stored}


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_of_a_float32_base_the_matrices_become_16_bits_wide(tmp_path: Path, kind: str) -> None:
    """`dequantize` promises 16 bits, and the room on the disk is reckoned with them."""
    assert types_of_fused(tmp_path, kind, mx.float32, bits=None, dequantize=True) == {mx.bfloat16}


@pytest.mark.parametrize("keys", [{}, {"export": "gguf"}])
@pytest.mark.parametrize("room", [2_000, 30_000])  # of which the tokenizer's file takes more, too
def test_a_disk_that_fills_is_a_refusal_and_what_was_begun_is_made_anew(
    tmp_path: Path, keys: dict[str, str], room: int
) -> None:
    """MLX says it in words alone. Taken for a bug, it would end a job that only has to wait for room."""
    home, source, model = trained(tmp_path, "lora", mx.float16, bits=4)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(SystemRefused, match=r"cannot be written|not whole"):
            fused(home, source, model, **keys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run = home.run("20261122-110000-fused")
    assert not run.model.exists()
    assert not run.gguf.exists()
    assert fused(home, source, model, **keys).path == run.path
    assert (run.gguf if keys else run.model).is_dir()


def test_a_source_that_is_gone_ends_the_fusing(tmp_path: Path) -> None:
    """As a refusal of the system it would be waited for without end."""
    home, source, model = trained(tmp_path, "lora", mx.float16, bits=4)
    home.run(source).spec.unlink()
    with pytest.raises(RunDamaged, match=source):
        fused(home, source, model)
