"""How much memory training may use, and when it gives the allocator's reserve back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import psutil
import pytest

from qlora_engine.job.events import Event, EventLog
from qlora_engine.job.spec import JobSpec, Memory
from qlora_engine.training import memory
from qlora_engine.training.memory import Device, Limits, is_out_of_memory, limits_of

MAC = Device(total=64_000_000_000, recommended=48_000_000_000, wires=True)
GPU = Device(total=80_000_000_000, recommended=76_000_000_000, own=True)
CPU = Device(total=32_000_000_000, recommended=None)


@pytest.mark.parametrize(
    ("device", "asked", "limit", "wired"),
    [
        (MAC, None, 48_000_000_000, 48_000_000_000),
        (MAC, 20.0, 20_000_000_000, 20_000_000_000),
        (MAC, 60.0, 60_000_000_000, 48_000_000_000),  # wiring more than that freezes a Mac
        (MAC, 500.0, 64_000_000_000, 48_000_000_000),
        (GPU, None, 76_000_000_000, None),
        (GPU, 6.0, 6_000_000_000, None),
        (CPU, None, None, None),
        (CPU, 4.0, 4_000_000_000, None),
    ],
)
def test_limits_come_from_the_job_or_else_from_the_device(
    device: Device, asked: float | None, limit: int | None, wired: int | None
) -> None:
    """A job may use less than the device has, or more than is recommended, never more than there is."""
    found = limits_of(Memory(limit_gb=asked), device)
    assert (found.limit, found.wired, found.device) == (limit, wired, device.total)
    own = device is GPU and asked is None  # nobody else needs a GPU's memory for something else
    assert found.cache == (0 if device is CPU else int((0.5 if own else 0.25) * (limit or device.total)))
    assert ("limit_gb" in found.source) is (asked is not None)


@pytest.mark.parametrize(
    ("device", "asked", "limit", "wired"),
    [
        (MAC, None, 24_000_000_000, 24_000_000_000),
        (MAC, 20.0, 20_000_000_000, 20_000_000_000),
        (MAC, 60.0, 24_000_000_000, 24_000_000_000),
        (GPU, None, 38_000_000_000, None),
        (CPU, None, 16_000_000_000, None),
        (CPU, 4.0, 4_000_000_000, None),
    ],
)
def test_no_job_exceeds_the_share_that_the_machine_leaves_to_training(
    device: Device, asked: float | None, limit: int, wired: int | None
) -> None:
    """Whoever works at the machine set it; a job may ask for less alone."""
    found = limits_of(Memory(limit_gb=asked), device, 0.5)
    assert (found.limit, found.wired) == (limit, wired)
    assert ("QLORAD_MEMORY_SHARE" in found.source) is (asked is None or asked > 24)
    assert limits_of(Memory(limit_gb=asked), device, 1.0) == limits_of(Memory(limit_gb=asked), device)


@pytest.mark.parametrize(("share", "own"), [(0.5, True), (0.98, False), (1.0, False), (3.0, True)])
def test_a_gpu_may_share_the_machines_memory(share: float, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the reserve of freed buffers is kept from everything else, too."""
    total = int(share * psutil.virtual_memory().total)
    monkeypatch.setattr(memory, "on_cpu", lambda: False)
    monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "a GPU", "total_memory": total})
    found = Device.found()
    assert (found.total, found.own) == (total, own)
    assert limits_of(Memory(), found).cache == int((0.5 if own else 0.25) * 0.95 * total)


@pytest.fixture
def as_before() -> Iterator[None]:
    """MLX's limits hold for the whole process, which other tests share."""
    cache = mx.set_cache_limit(1 << 40)
    most = mx.set_memory_limit(1 << 40)
    mx.set_cache_limit(cache)
    mx.set_memory_limit(most)
    yield
    mx.set_cache_limit(cache)
    mx.set_memory_limit(most)


@pytest.mark.usefixtures("as_before")
def test_limits_are_set_and_said() -> None:
    """What nobody can see nobody can correct."""
    events: list[Event] = []
    found = memory.set_limits(Memory(limit_gb=2.0), EventLog([events.append]))
    (event,) = events
    assert event["event"] == "memory.limits"
    assert (event["limit_gb"], event["source"]) == (2.0, "the job's memory.limit_gb")
    assert mx.set_memory_limit(1 << 40) <= 2_000_000_000
    assert mx.set_cache_limit(1 << 30) == found.cache


def filled_cache() -> int:
    """Bytes in the allocator's reserve, some."""
    mx.clear_cache()
    block = mx.ones((1 << 20,))
    mx.eval(block)
    del block
    return mx.get_cache_memory()


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize(
    ("keys", "limit", "step", "cleared"),
    [
        ({}, None, 1, False),
        ({}, 1 << 40, 1, False),
        ({}, 1, 1, True),  # tight: by need
        ({"clear_cache_threshold": 1 << 40}, None, 1, False),
        ({"clear_cache_threshold": 1}, None, 1, True),  # as in mlx_lm
        ({"memory": Memory(cleanup_every=3)}, None, 2, False),
        ({"memory": Memory(cleanup_every=3)}, None, 3, True),
        ({"memory": Memory(cleanup_every=3)}, None, 4, False),
        ({"memory": Memory(cleanup_every=1)}, None, 4, True),
    ],
)
def test_the_reserve_is_given_back_by_need_and_as_often_as_asked(
    keys: dict[str, Any], limit: int | None, step: int, cleared: bool
) -> None:
    """Every step costs speed, never costs memory: so by need, and by count only for who wants it."""
    mx.set_cache_limit(1 << 30)
    before = filled_cache()
    assert before >= 1 << 22
    memory.trim(JobSpec(**keys), Limits(limit, 1 << 30, None, 1 << 40, "test"), step)
    assert (mx.get_cache_memory() < before) is cleared


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum"), True),
        (RuntimeError("[malloc] Unable to allocate 1099511627776 bytes."), True),
        (RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPU…)"), True),
        (RuntimeError("[METAL] … (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"), True),
        (RuntimeError("cudaMallocAsync(&data, size, stream) failed: out of memory"), True),
        (RuntimeError("[matmul] Last dimension of first input must match"), False),
        (ValueError("out of memory"), False),
        (KeyError("malloc"), False),
    ],
)
def test_errors_that_mean_want_of_memory_are_told_from_others(error: Exception, expected: bool) -> None:
    """Taken for one, a bug would send a job down the ladder; missed, a job that could go on would fail."""
    assert is_out_of_memory(error) is expected


def test_usage_is_in_every_report_s_units() -> None:
    """Active, peak and reserve of MLX, and the process's own, in 10^9 bytes."""
    found = memory.usage()
    assert set(found) == {"memory_gb", "peak_gb", "cache_gb", "process_gb"}
    assert 0.01 < found["process_gb"] < 1000
