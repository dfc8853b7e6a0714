"""What training computes with: MLX, its device and that device's memory; on Linux BLAS and a compiler, too."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from qlora_client.doctor.finding import Verdict, error, info, ok, warning
from qlora_client.doctor.machine import Machine, System
from qlora_client.doctor.topic import Topic
from qlora_engine import blas as blas_library
from qlora_engine.host.program import Finished, run
from qlora_engine.host.sysctl import sysctl
from qlora_engine.job.errors import BadSetting, ProgramFailed
from qlora_engine.job.text import plain, size

ASKED = "qlora_engine.training.about"
SECONDS = 8.0  # the first import after an installation reads some hundred megabytes
WIRED = "iogpu.wired_limit_mb"
LEAST = 5_000_000_000  # bytes for training: a 3B model in 4 bits and its adapters
LEFT = 0.1  # of the memory that macOS should keep for itself
NVIDIA = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Mlx:
    """What MLX says of itself in a process as training has it.

    Attributes:
        backend: cpu, metal or cuda.
        name: of the device.
        works: it has computed something.
        memory: of the device, bytes; None where it does not tell.
        recommended: bytes that a program should use at most, the working set; None where it does not tell.
        blas: library that it was started with.
    """

    version: str
    backend: str
    name: str
    works: bool
    memory: int | None
    recommended: int | None
    blas: str | None


@dataclass(frozen=True)
class ComputeFacts:
    """What there is to compute with.

    Attributes:
        mlx: None where it could not be asked, and `problem` says why.
        memory: of the machine, bytes.
        wired_limit: megabytes that macOS lets the GPU wire, where somebody set them; None or 0 for macOS's own choice.
        nvidia: the kernel has NVIDIA's driver.
        compiler: there is a g++, which MLX compiles fused operations with on the CPU.
        choice: QLORAD_CPU_BLAS.
        blas_problem: why that cannot be used.
    """

    system: System
    mlx: Mlx | None
    problem: str = ""
    memory: int = 0
    wired_limit: int | None = None
    nvidia: bool = False
    compiler: bool = True
    choice: str = "auto"
    blas_problem: BadSetting | None = None


def look(machine: Machine) -> ComputeFacts:
    """Ask MLX in a process of its own, started as training would be, and the kernel."""
    choice = machine.settings.cpu_blas
    environment: dict[str, str] = {}
    blas_problem = None
    try:
        environment = blas_library.training_environment(choice, None)
    except BadSetting as problem:
        blas_problem = problem
    mlx, problem_text = _ask_mlx(environment)
    wired = sysctl(WIRED) if machine.is_mac else None
    return ComputeFacts(
        system=machine.system,
        mlx=mlx,
        problem=problem_text,
        memory=psutil.virtual_memory().total,
        wired_limit=int(wired) if wired is not None and wired.isdigit() else None,
        nvidia=NVIDIA.exists(),
        compiler=shutil.which("g++") is not None,
        choice=choice,
        blas_problem=blas_problem,
    )


def mlx(facts: ComputeFacts) -> Verdict:
    """MLX can be imported, and computes."""
    if facts.mlx is None:
        return error(
            f"MLX does not work: {facts.problem}.",
            f"See all that it says: {sys.executable} -c 'import mlx.core'. Then install qlorad anew, by `make setup`.",
        )
    if not facts.mlx.works:
        return error(
            f"MLX {facts.mlx.version} adds up wrongly on {facts.mlx.name or facts.mlx.backend}.",
            "Restart the machine; if that is of no help, its GPU or its driver is broken.",
        )
    return ok(facts.mlx.version)


def device(facts: ComputeFacts) -> Verdict | None:
    """Training runs on the GPU that is there."""
    if facts.mlx is None:
        return None
    backend, name = facts.mlx.backend, facts.mlx.name
    if facts.system == "macos" and backend != "metal":
        return error(
            "MLX finds no Metal on this Mac, as under Rosetta or in a virtual machine.",
            "Run qlorad on the Mac itself, with a Python for Apple silicon.",
        )
    if backend == "cpu" and facts.nvidia:
        return warning(
            "There is an NVIDIA GPU, but MLX was installed for the CPU.",
            "Install its build for CUDA: BACKEND=cuda13 make setup.",
        )
    return ok(f"{name} ({backend})" if name else backend)


def gpu_memory(facts: ComputeFacts) -> Verdict | None:
    """The working set that Metal recommends, or the memory of an NVIDIA GPU, is enough for a small model."""
    if facts.mlx is None or facts.mlx.backend == "cpu":
        return None
    limit = facts.mlx.recommended or facts.mlx.memory
    if limit is None:
        return None
    shown = f"{size(limit)} for training" + (f" of {size(facts.memory)}" if facts.mlx.recommended else "")
    if limit < LEAST:
        return warning(
            f"{shown}: models of 3 billion parameters and more will not fit.",
            "Use small models, `qlora validate` tells; or leave more memory to the GPU where there is more.",
        )
    return ok(shown)


def wired_limit(facts: ComputeFacts) -> Verdict | None:
    """Nobody gave the GPU so much that macOS has too little."""
    if facts.system != "macos" or facts.wired_limit is None:
        return None
    limit = facts.wired_limit * 2**20
    if limit > (1 - LEFT) * facts.memory:
        return warning(
            f"{WIRED} lets the GPU keep {size(limit)} of {size(facts.memory)}; what macOS then lacks ends the machine.",
            f"sudo sysctl {WIRED}=0 gives macOS the choice back; at most {(1 - LEFT):.0%} of the memory is wise.",
        )
    return ok(f"{size(limit)}, set by hand" if limit else "macOS's own")


def blas(facts: ComputeFacts) -> Verdict | None:
    """On Linux without a GPU: a fast BLAS lies under MLX, which brings the reference one."""
    if facts.system != "linux" or facts.mlx is None or facts.mlx.backend != "cpu":
        return None
    if facts.blas_problem is not None:
        return error(facts.blas_problem.what, facts.blas_problem.remedy or "Set it to auto.")
    if facts.mlx.blas is not None:
        return ok(Path(facts.mlx.blas).name)
    if facts.choice == "off":
        return info(
            "QLORAD_CPU_BLAS is off: some forty times slower than with OpenBLAS.", "Unset it, unless you measure."
        )
    return warning(
        "There is no OpenBLAS: training on the CPU is some forty times slower without it.",
        "Install your distribution's (apt install libopenblas0-pthread), or gcc, which the one in the package needs.",
    )


def compiler(facts: ComputeFacts) -> Verdict | None:
    """On the CPU: MLX can compile fused operations; without a compiler it runs them one by one and does not say so."""
    if facts.mlx is None or facts.mlx.backend != "cpu" or facts.system != "linux":
        return None
    if facts.compiler:
        return ok("g++")
    return warning("There is no g++, so MLX runs fused operations one by one.", "Install it: apt install g++, say.")


def _ask_mlx(environment: dict[str, str]) -> tuple[Mlx | None, str]:
    try:
        done = run([sys.executable, "-P", "-m", ASKED], timeout=SECONDS, environment=environment)
    except ProgramFailed as problem:
        return None, problem.what.removesuffix(".")
    try:
        said: dict[str, Any] = json.loads(done.out.splitlines()[-1])  # Any: JSON
        library = (said.pop("blas") or {}).get("library")
        return Mlx(**said, blas=library), ""
    except (IndexError, ValueError, TypeError, KeyError):
        return None, _complaint(done)


def _complaint(done: Finished) -> str:
    last = plain(next(reversed(done.err.strip().splitlines()), ""), 300).rstrip(".")
    return last or (f"its process was ended by signal {-done.code}" if done.code < 0 else f"it ended with {done.code}")


TOPIC = Topic(
    "Computing",
    look,
    {
        "mlx": mlx,
        "device": device,
        "gpu memory": gpu_memory,
        "wired limit": wired_limit,
        "blas": blas,
        "compiler": compiler,
    },
)
