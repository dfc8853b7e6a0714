"""Fusing as a job of the queue: after the job that trains, done again when it is killed, and whole or absent."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import psutil
import pytest
from mlx_lm import load

from qlora_client.api import Client
from qlora_engine.job.models import describe
from qlora_engine.job.states import State
from qlora_engine.training.gguf import read_gguf
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
