"""The machine's memory: how much there is, and how short of it the machine is now."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from qlora_client.doctor.finding import Verdict, error, ok, warning
from qlora_client.doctor.machine import Machine
from qlora_client.doctor.topic import Topic
from qlora_engine.host.pressure import Pressure, memory_pressure
from qlora_engine.job.text import size

LEAST = 7_500_000_000  # bytes; a machine sold with 8 GB shows a little less


@dataclass(frozen=True)
class MemoryFacts:
    """Bytes.

    Attributes:
        total: of the machine.
        available: that a new program could have.
        pressure: None where the system does not tell.
    """

    total: int
    available: int
    pressure: Pressure | None = None


def look(_machine: Machine) -> MemoryFacts:
    """Ask the kernel."""
    memory = psutil.virtual_memory()
    return MemoryFacts(memory.total, memory.available, memory_pressure())


def memory(facts: MemoryFacts) -> Verdict:
    """As much as a small model needs."""
    shown = f"{size(facts.total)}, {size(facts.available)} of it available"
    if facts.total < LEAST:
        return warning(
            f"{shown}: enough for models of up to a billion parameters.",
            "Use small models; `qlora validate FILE` says what a job needs, and what would make it fit.",
        )
    return ok(shown)


def pressure(facts: MemoryFacts) -> Verdict | None:
    """Nothing else is in want of memory now; at `critical`, jobs wait."""
    match facts.pressure:
        case None:
            return None
        case Pressure.NORMAL:
            return ok("normal")
        case Pressure.WARNING:
            return warning(
                f"Memory is short: {size(facts.available)} available.",
                "Close what you do not need, or leave more to others with QLORAD_MEMORY_SHARE.",
            )
    return error(
        f"Memory is so short that jobs wait: {size(facts.available)} available.",
        "Close programs that use much of it (Activity Monitor, or `top -o mem`), or restart the machine.",
    )


TOPIC = Topic("Memory", look, {"memory": memory, "pressure": pressure})
