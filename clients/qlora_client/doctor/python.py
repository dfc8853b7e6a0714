"""Python: its version, the processor that it was built for, the packages, and other installations of qlorad."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from qlora_client.doctor.finding import Verdict, error, info, ok, warning
from qlora_client.doctor.machine import Machine, System
from qlora_client.doctor.topic import Topic
from qlora_engine.host.program import run
from qlora_engine.host.sysctl import sysctl
from qlora_engine.job.errors import ProgramFailed
from qlora_engine.job.text import plain

DISTRIBUTION = "qlorad"
OLDEST, NEWEST = (3, 11), (3, 13)  # as `requires-python` of the project
OLDEST_MACOS = 14  # MLX's wheels are built for it
WIRING_MACOS = 15  # the first in which MLX can keep memory from being swapped out
VERSION_SECONDS = 2.0
SUPPORTED = ("arm64", "aarch64", "x86_64", "amd64")
NATIVE = (
    "Install a Python for Apple silicon, from python.org or by `brew install python@3.12`, and install qlorad with it."
)


@dataclass(frozen=True)
class Installation:
    """One `qlora` or `qlorad` on PATH, links followed."""

    path: Path
    version: str | None


@dataclass(frozen=True)
class PythonFacts:
    """Of the Python that runs this, and of its packages.

    Attributes:
        version: (3, 12, 4).
        executable: of this process.
        processor: that it was built for, as `platform.machine()` has it.
        apple_silicon: the machine has an ARM processor of Apple, whatever Python was built for.
        macos: its version; None elsewhere, or where it does not tell.
        unmet: packages as (requirement, version that is installed or None).
        here: version of the qlorad that runs this; None where it is not installed as a package.
        others: programs on PATH that belong to another installation.
    """

    system: System
    version: tuple[int, ...]
    executable: Path
    processor: str
    apple_silicon: bool = False
    macos: str | None = None
    unmet: tuple[tuple[str, str | None], ...] = ()
    here: str | None = None
    others: tuple[Installation, ...] = ()


def look(machine: Machine) -> PythonFacts:
    """Ask Python, the kernel, and PATH."""
    return PythonFacts(
        system=machine.system,
        version=sys.version_info[:3],
        executable=Path(sys.executable),
        processor=platform.machine(),
        # Either is enough: a program that a translated process starts may itself run untranslated.
        apple_silicon=machine.is_mac and "1" in (sysctl("hw.optional.arm64"), sysctl("sysctl.proc_translated")),
        macos=sysctl("kern.osproductversion") if machine.is_mac else None,
        unmet=tuple(unmet(importlib.metadata.requires(DISTRIBUTION) or [])) if _version(DISTRIBUTION) else (),
        here=_version(DISTRIBUTION),
        others=_others(machine.environment),
    )


def python(facts: PythonFacts) -> Verdict:
    """One of the versions that everything is built for and tested with."""
    version = ".".join(map(str, facts.version))
    if OLDEST <= facts.version[:2] <= NEWEST:
        return ok(f"{version}, {facts.executable}")
    return error(
        f"This is Python {version} ({facts.executable}); qlorad needs 3.{OLDEST[1]} to 3.{NEWEST[1]}.",
        "Install qlorad with one of those: `make setup PYTHON=python3.12` in a clone of it.",
    )


def architecture(facts: PythonFacts) -> Verdict:
    """A Python that runs on the processor itself; MLX has no Metal under Rosetta, nor on Intel."""
    if facts.system == "macos" and facts.processor != "arm64":
        if facts.apple_silicon:
            return error(
                f"This Python was built for {facts.processor} and runs under Rosetta, where MLX finds no Metal.", NATIVE
            )
        return error("This Mac has an Intel processor; MLX needs Apple silicon.", "Use a Mac with an M1 or later.")
    if facts.processor.lower() not in SUPPORTED:
        return error(
            f"This Python runs on {facts.processor or 'an unknown processor'}, for which there is no MLX.",
            "Use a 64-bit machine, ARM or x86, with a 64-bit Python.",
        )
    return ok(facts.processor)


def macos(facts: PythonFacts) -> Verdict | None:
    """A macOS that MLX was built for."""
    if facts.macos is None or not facts.macos.split(".")[0].isdigit():
        return None
    major = int(facts.macos.split(".")[0])
    if major < OLDEST_MACOS:
        return error(
            f"This is macOS {facts.macos}; MLX needs {OLDEST_MACOS} or later.",
            "Update it in System Settings › General › Software Update.",
        )
    if major < WIRING_MACOS:
        return info(
            f"macOS {facts.macos}: MLX cannot keep memory from being swapped out before {WIRING_MACOS}.",
            "Update macOS if jobs are slow while memory is short.",
        )
    return ok(facts.macos)


def packages(facts: PythonFacts) -> Verdict:
    """Every package that qlorad needs, in a version that it was made for."""
    if not facts.unmet:
        return ok(f"qlorad {facts.here} and all that it needs" if facts.here else "run from its source")
    named = [f"{needed} ({f'{found} is installed' if found else 'missing'})" for needed, found in facts.unmet]
    return error(
        f"Packages do not fit: {', '.join(named)}.",
        "Install qlorad anew into an environment of its own: `make setup`, `pipx reinstall qlorad` or "
        "`uv tool upgrade --reinstall qlorad`.",
    )


def installations(facts: PythonFacts) -> Verdict:
    """One installation on PATH: otherwise the client may not be the daemon's."""
    if not facts.others:
        return ok("one")
    named = [f"{other.path} ({other.version or 'of an unknown version'})" for other in facts.others]
    return warning(
        f"There are others beside this one ({facts.executable.parent}, {facts.here}): {', '.join(named)}.",
        "Keep one and remove the others, or call the one that you mean by its path.",
    )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def unmet(requirements: list[str]) -> list[tuple[str, str | None]]:
    """Of requirements as a package states them, those that are not met here; extras are left aside."""
    found: list[tuple[str, str | None]] = []
    for line in requirements:
        try:
            needed = Requirement(line)
        except InvalidRequirement:
            continue
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        version = _version(needed.name)
        if version is None or not needed.specifier.contains(version, prereleases=True):
            found.append((f"{needed.name} {needed.specifier}".strip(), version))
    return found


def _others(environment: Mapping[str, str]) -> tuple[Installation, ...]:
    ours = Path(sys.executable).parent.resolve()  # the folder alone: python itself is a link out of its environment
    found: dict[Path, Installation] = {}
    for folder in environment.get("PATH", "").split(os.pathsep):
        for name in ("qlora", "qlorad"):
            program = Path(folder) / name
            if not folder or not os.access(program, os.X_OK) or not program.is_file():
                continue
            real = program.resolve()  # pipx and uv put a link onto PATH
            if real.parent != ours and real.parent not in found:
                found[real.parent] = Installation(program, _asked(program))
    return tuple(found.values())


def _asked(program: Path) -> str | None:
    """The version that a program says of itself."""
    try:
        said = run([str(program), "--version"], timeout=VERSION_SECONDS)
    except ProgramFailed:
        return None
    words = said.out.split()
    return plain(words[-1], 40) if said.code == 0 and words else None


TOPIC = Topic(
    "Python",
    look,
    {
        "python": python,
        "architecture": architecture,
        "macos": macos,
        "packages": packages,
        "installations": installations,
    },
)
