"""Whether a training process ended for want of memory: the system seldom says so, so the signs are put together."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

SCARCE = 0.05  # of all memory
PRINTED = ("Insufficient Memory", "OutOfMemory", "ut of memory", "bad_alloc", "Unable to allocate", "MemoryError")
PRINTED_BYTES = 65_536  # at the end of what it printed
GIGA = 1e9

_KILL = -signal.SIGKILL
_FAULTS = (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT)
_UNCAUGHT = 1  # Python's exit code for an exception that nobody caught


@dataclass(frozen=True)
class Evidence:
    """What is known of memory when a process has ended.

    Attributes:
        returncode: as `subprocess` gives it: negative for a signal.
        killed_here: its worker sent SIGKILL.
        system_kills: processes that the system killed for memory while this one ran.
        available: memory that was to be had at the last look, bytes.
        total: memory of the machine, bytes.
        limit: on the process's address space or data, bytes; None without one.
        printed: the end of what it printed.
    """

    returncode: int
    killed_here: bool = False
    system_kills: int = 0
    available: int = 1
    total: int = 1
    limit: int | None = None
    printed: str = ""


def out_of_memory(evidence: Evidence) -> str | None:
    """What shows that the process ended for want of memory, in words; None where nothing does.

    An exit code of its own is its own word: what it found wrong, it says in an event.
    """
    code = evidence.returncode
    if evidence.killed_here or (code >= 0 and code != _UNCAUGHT):
        return None
    if code == _KILL and evidence.system_kills:
        return "the system killed it to free memory"
    text = next((text for text in PRINTED if text in evidence.printed), None)
    if text and (code in _FAULTS or code == _UNCAUGHT):
        return f"it printed “{_line_with(text, evidence.printed)}”"
    if code in _FAULTS and evidence.limit is not None:
        return f"{_name(code)} under a memory limit of {evidence.limit / GIGA:.3g} GB"
    if code in (_KILL, *_FAULTS) and evidence.available < SCARCE * evidence.total:
        return f"{_name(code)} with {evidence.available / GIGA:.2g} of {evidence.total / GIGA:.3g} GB available"
    return None


def _line_with(text: str, printed: str) -> str:
    return next(line for line in reversed(printed.splitlines()) if text in line).strip()[:160]


def _name(code: int) -> str:
    return signal.Signals(-code).name


class MemoryWatch:
    """Collects the evidence on one process, from just before it starts.

    Args:
        output: where the process prints, behind what is there already.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._printed_from = output.stat().st_size if output.exists() else 0
        self._kills = system_kills()
        self.sample()

    def sample(self) -> None:
        """Look at how much memory is left. What is left once the process is gone says nothing any more."""
        memory = psutil.virtual_memory()
        self._available, self._total = memory.available, memory.total

    def evidence(self, returncode: int, *, killed_here: bool) -> Evidence:
        """All of it, when the process has ended."""
        return Evidence(
            returncode,
            killed_here,
            system_kills() - self._kills,
            self._available,
            self._total,
            _limit(),
            self._printed(),
        )

    def _printed(self) -> str:
        try:
            with self._output.open("rb") as file:
                end = file.seek(0, 2)
                begin = self._printed_from if self._printed_from <= end else 0  # its head was cut off meanwhile
                file.seek(max(begin, end - PRINTED_BYTES))
                return file.read().decode(errors="replace")
        except OSError:
            return ""  # removed by somebody: then it tells nothing


def _limit() -> int | None:
    """The smaller of this process's limits on address space and data, which its children inherit."""
    softs = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return min((soft for soft in softs if soft != resource.RLIM_INFINITY), default=None)


def system_kills(root: Path = Path("/")) -> int:
    """Processes that the system has killed for memory since it started: of this cgroup where Linux counts them by
    cgroup, of the machine otherwise. 0 where nobody counts, as on macOS.
    """
    for path in _counters(root):
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0


def _counters(root: Path) -> Iterator[Path]:
    """Where Linux counts such kills, the most exact first (cgroup-v2.rst, cgroup-v1/memory.rst, proc(5)).

    In a container the path of a cgroup may be that of the host, while its files lie at the top.
    """
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers == "memory":
                top, file = root / "sys/fs/cgroup/memory", "memory.oom_control"
            elif controllers == "":
                top, file = root / "sys/fs/cgroup", "memory.events"
            else:
                continue
            yield top / place.strip("/") / file
            yield top / file
    yield root / "proc/vmstat"
