"""How much memory training may use, what it uses, and when the allocator gives back what it keeps in reserve."""

from __future__ import annotations

import ctypes
import platform
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import mlx.core as mx
import psutil

from qlora_engine.job.events import EventLog
from qlora_engine.job.spec import JobSpec, Memory
from qlora_engine.training.device import on_cpu

GIGA = 1e9
# MLX waits for work under way when its limit is reached, and then allocates: on an H100 a limit of 5.2 GB gave
# peaks of 5.6 GB. It is set so much lower that the peak stays under what was asked for, in bytes or, of a small
# limit, as a share.
OVERSHOOT, OVERSHOOT_SHARE = int(0.5e9), 0.13
# Of the limit, that freed buffers may take: of memory that others need too, or of a GPU's own. Batches of another width
# want buffers of another size, and what is not kept for them is asked of the driver again.
CACHE_SHARE, OWN_CACHE_SHARE = 0.25, 0.5
ALIKE = 0.1  # how far two sizes of one memory are apart
CPU_CACHE = 0  # the C library's allocator is a reserve of its own, and one of MLX's beside it saves no time
# mallopt's M_ARENA_MAX, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
ONE_HEAP = ((-8, 1), (-3, 1 << 30), (-1, 1 << 30))
OUT_OF_MEMORY = ("out of memory", "outofmemory", "insufficient memory", "unable to allocate", "malloc")
BY_SHARE = "the setting QLORAD_MEMORY_SHARE"
NEGLIGIBLE = 64 << 20  # bytes, whatever the limit
TIGHT = 0.9  # of the limit: above it the reserve is given back


@dataclass(frozen=True)
class Limits:
    """Bytes.

    Attributes:
        limit: of MLX's active memory; None where only the system sets one.
        cache: of freed buffers kept for reuse.
        wired: kept from being paged out; None where the backend knows no such thing.
        device: of the device.
        source: where the limit comes from.
        asked: the job sets the limit: memory counts for more than time.
    """

    limit: int | None
    cache: int
    wired: int | None
    device: int
    source: str
    asked: bool = False


@dataclass(frozen=True)
class Device:
    """Bytes of memory.

    Attributes:
        total: that it has.
        recommended: that a program should use at most; None where the system says nothing.
        wires: it can be kept from being paged out.
        own: nothing but the device uses it.
    """

    total: int
    recommended: int | None
    wires: bool = False
    own: bool = False

    @classmethod
    def found(cls) -> Device:
        """The one that MLX computes on."""
        if on_cpu():
            return cls(psutil.virtual_memory().total, None)
        about = mx.device_info()
        total = int(about.get("memory_size") or about.get("total_memory") or psutil.virtual_memory().total)
        recommended = about.get("max_recommended_working_set_size")
        # A GPU that shares the machine's memory has about as much of it.
        own = not recommended and abs(total / psutil.virtual_memory().total - 1) > ALIKE
        return cls(total, int(recommended) if recommended else int(0.95 * total), wires=bool(recommended), own=own)


def limits_of(memory: Memory, device: Device, share: float = 1.0) -> Limits:
    """The limits of a run: what the job sets, or else what the device recommends.

    Args:
        memory: of the job.
        device: that it trains on.
        share: of what is recommended, or of all memory where nothing is, that no job may exceed; 1 for as it was.
    """
    asked = None if memory.limit_gb is None else int(memory.limit_gb * GIGA)
    most = device.total if share == 1 else int(share * (device.recommended or device.total))
    by_share = share < 1 and (asked is None or asked > most)
    cache_share = OWN_CACHE_SHARE if device.own and asked is None else CACHE_SHARE
    limit = min(asked, most) if asked is not None else most if by_share else device.recommended
    return Limits(
        limit=limit,
        cache=CPU_CACHE if device.recommended is None else int(cache_share * (limit or device.recommended)),
        wired=min(limit, device.recommended) if device.wires and limit and device.recommended else None,
        device=device.total,
        source=BY_SHARE if by_share else "the job's memory.limit_gb" if asked is not None else "the device",
        asked=asked is not None,
    )


def set_limits(wanted: Memory, log: EventLog, share: float = 1.0) -> Limits:
    """Give MLX its limits, and say them.

    Args:
        wanted: by the job.
        log: receives the event.
        share: as above.
    """
    limits = limits_of(wanted, Device.found(), share)
    if limits.limit is not None:
        meant = limits.asked or limits.source == BY_SHARE
        below = min(OVERSHOOT, int(OVERSHOOT_SHARE * limits.limit)) if meant else 0
        mx.set_memory_limit(limits.limit - below)
    mx.set_cache_limit(limits.cache)
    if limits.wired is not None:
        mx.set_wired_limit(limits.wired)
    if on_cpu():
        _keep_one_heap()
    log.emit(
        "memory.limits",
        limit_gb=_giga(limits.limit),
        wired_gb=_giga(limits.wired),
        cache_gb=_giga(limits.cache),
        device_gb=_giga(limits.device),
        source=limits.source,
    )
    return limits


def _keep_one_heap() -> None:
    """Have all threads take memory from one heap that does not shrink, where the C library is glibc.

    MLX's CPU backend takes a buffer in one thread and its scratch space in another, and rows of another length want
    buffers of another size. With a heap for each thread, and large buffers mapped one by one, the process grew by
    3 to 8 percent between the 200th and the 2,000th micro-batch; so it stays within 1.
    """
    if sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc":
        for option in ONE_HEAP:
            ctypes.CDLL(None).mallopt(*option)


def has_room(limits: Limits, size: int) -> bool:
    """Whether so many bytes may be held beside what training needs, which is more wherever little is known."""
    if limits.limit is None or limits.asked:
        return size <= NEGLIGIBLE
    return mx.get_peak_memory() + size <= TIGHT * limits.limit


def trim(spec: JobSpec, limits: Limits, step: int) -> None:
    """Give the allocator's reserve back: by need, and as often as the job forces it.

    Args:
        step: micro-batches done.
    """
    forced = spec.memory.cleanup_every is not None and step % spec.memory.cleanup_every == 0
    cache = mx.get_cache_memory()
    over = bool(spec.clear_cache_threshold) and cache > spec.clear_cache_threshold
    tight = limits.limit is not None and mx.get_active_memory() + cache > TIGHT * limits.limit
    if forced or over or tight:
        mx.clear_cache()


def usage() -> dict[str, Any]:
    """MLX's memory and the process's, for an event, 10^9 bytes."""
    return {
        "memory_gb": _giga(mx.get_active_memory()),
        "peak_gb": _giga(mx.get_peak_memory()),
        "cache_gb": _giga(mx.get_cache_memory()),
        "process_gb": _giga(_process().memory_info().rss),
    }


@cache
def _process() -> psutil.Process:
    return psutil.Process()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, in the words of any of MLX's backends."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)


def _giga(bytes_: int | None) -> float | None:
    return None if bytes_ is None else round(bytes_ / GIGA, 4)
