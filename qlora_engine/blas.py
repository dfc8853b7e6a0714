"""The BLAS library under MLX's CPU backend on Linux, and the environment that brings it into a training process.

MLX's Linux wheel for CPU links the reference BLAS: about 4 GFLOP/s on two cores, where OpenBLAS reaches 190 in
float32. A library can only be put before it when a process starts (LD_PRELOAD), so whoever starts a training
process asks here. Two places have one: the distribution's OpenBLAS, and the wheel `scipy-openblas32`, whose
symbols carry a prefix that a small library made with the system's compiler takes off. On a Mac, MLX uses
Accelerate and nothing is done.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qlora_engine.job.errors import BadSetting
from qlora_engine.job.folder import RunFolder

SYSTEM_PATTERNS = (
    "/usr/lib/*/openblas-pthread/libopenblas.so.0",
    "/usr/lib/*/libopenblas.so.0",
    "/usr/lib64/libopenblasp.so.0",
    "/usr/lib64/libopenblas.so.0",
    "/usr/lib/libopenblas.so.0",
    "/usr/lib/libopenblas.so",
)


@dataclass(frozen=True)
class Blas:
    """What decides how the library rounds: the same three give the same bits."""

    library: str
    threads: int
    core: str | None = None  # OpenBLAS's name for the kernels it picked


def training_environment(cpu_blas: str, run: RunFolder | None) -> dict[str, str]:
    """The variables that a training process needs beside those of its parent.

    Args:
        cpu_blas: `auto`, `off`, or the path of a library (QLORAD_CPU_BLAS).
        run: a run whose first start recorded its BLAS, or that it had none, which a resumed run takes again.

    Raises:
        BadSetting: the path does not exist.
    """
    if not sys.platform.startswith("linux") or not installed("mlx-cpu"):
        return {}
    blas = recorded(run) if run is not None else None
    if run is not None and run.runtime.exists() and blas is None:
        return {}
    if blas is None or not Path(blas.library).exists():
        library = find_library(cpu_blas)
        if library is None:
            return {}
        blas = Blas(str(library), _threads())
    before = os.environ.get("LD_PRELOAD", "")
    preload = before if blas.library in before.split(":") else ":".join(filter(None, (blas.library, before)))
    variables = {"LD_PRELOAD": preload, "OPENBLAS_NUM_THREADS": str(blas.threads)}
    if blas.core:
        variables["OPENBLAS_CORETYPE"] = blas.core
    return variables


def _threads() -> int:
    """What OPENBLAS_NUM_THREADS says, as for any other program, or a thread for each core that is ours.

    OpenBLAS's threads wait for one another by spinning: more of them than cores, and training takes many times as long.
    """
    said = os.environ.get("OPENBLAS_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) else len(os.sched_getaffinity(0))


def recorded(run: RunFolder) -> Blas | None:
    """The BLAS that the run's first start found, if it has started and used one."""
    try:
        value = json.loads(run.runtime.read_bytes()).get("blas")
        return Blas(**value) if value else None
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError):
        return None  # damaged: training says so


def find_library(choice: str) -> Path | None:
    """The library that a setting asks for, or None to leave MLX as it is.

    Raises:
        BadSetting: the path does not exist.
    """
    if choice == "off":
        return None
    if choice != "auto":
        path = Path(choice).expanduser().absolute()
        if not path.is_file():
            raise BadSetting(
                f"QLORAD_CPU_BLAS names {path}, which does not exist.",
                where="QLORAD_CPU_BLAS",
                remedy="Set it to auto, off, or the path of a libopenblas.so.",
            )
        if not _can_be_preloaded(path):
            raise BadSetting(
                f"QLORAD_CPU_BLAS names {path}, which LD_PRELOAD cannot hold: it ends a path at spaces and colons.",
                where="QLORAD_CPU_BLAS",
                remedy="Copy or link the library to a path without them.",
            )
        return path
    for pattern in SYSTEM_PATTERNS:
        if found := sorted(Path("/").glob(pattern.lstrip("/"))):
            return found[0]
    made = _from_wheel()
    return made if made and _can_be_preloaded(made) else None


def _can_be_preloaded(library: Path) -> bool:
    return not any(letter in str(library) for letter in " :\t\n")


def loaded() -> Blas | None:
    """The BLAS that this process was started with, as the library itself describes it."""
    for entry in os.environ.get("LD_PRELOAD", "").split(":"):
        if "blas" not in Path(entry).name:
            continue
        library = ctypes.CDLL(entry)
        for prefix in ("", "scipy_"):
            corename = getattr(library, f"{prefix}openblas_get_corename", None)
            threads = getattr(library, f"{prefix}openblas_get_num_threads", None)
            if corename is not None and threads is not None:
                corename.restype = ctypes.c_char_p
                return Blas(entry, int(threads()), (corename() or b"").decode() or None)
        return Blas(entry, int(os.environ.get("OPENBLAS_NUM_THREADS", "0")))
    return None


def as_json(blas: Blas | None) -> dict[str, Any] | None:
    """For the run's record of what was found."""
    return asdict(blas) if blas else None


def installed(distribution: str) -> bool:
    """Whether this Python has a package."""
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


# The three products that MLX calls, by the names it calls them.
_SHIM = """
typedef int i;
#define REAL(name, t) \\
  void scipy_cblas_##name(i, i, i, i, i, i, t, const t *, i, const t *, i, t, t *, i); \\
  void cblas_##name(i o, i p, i q, i m, i n, i k, t x, const t *a, i s, const t *b, i u, t y, t *c, i v) \\
  { scipy_cblas_##name(o, p, q, m, n, k, x, a, s, b, u, y, c, v); }
REAL(sgemm, float)
REAL(dgemm, double)
void scipy_cblas_cgemm(i, i, i, i, i, i, const void *, const void *, i, const void *, i, const void *, void *, i);
void cblas_cgemm(i o, i p, i q, i m, i n, i k, const void *x, const void *a, i s, const void *b, i u,
                 const void *y, void *c, i v)
{ scipy_cblas_cgemm(o, p, q, m, n, k, x, a, s, b, u, y, c, v); }
"""


def _from_wheel() -> Path | None:
    """OpenBLAS from the wheel, behind the names that MLX uses; None without the wheel or a compiler.

    The small library is made once a version and kept in the user's cache.
    """
    spec = importlib.util.find_spec("scipy_openblas32")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if spec is None or not spec.submodule_search_locations or compiler is None:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "lib"
    version = importlib.metadata.version("scipy-openblas32")
    key = hashlib.sha256(f"{_SHIM}{folder}{version}".encode()).hexdigest()[:12]
    target = Path("~/.cache/qlorad").expanduser() / f"openblas-{version}-{key}.so"
    if target.exists():
        return target
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        made = Path(temporary) / target.name
        result = subprocess.run(
            [compiler, "-shared", "-fPIC", "-O2", "-x", "c", "-", "-o", str(made),
             f"-L{folder}", "-l:libscipy_openblas.so", f"-Wl,-rpath,{folder}"],
            input=_SHIM, text=True, capture_output=True, check=False,
        )  # fmt: skip
        if result.returncode != 0:
            return None
        made.rename(target)
    return target
