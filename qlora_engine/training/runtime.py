"""What a run found when it first started, written down before its first step and compared when it resumes."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import mlx.core as mx

from qlora_engine import __version__, blas
from qlora_engine.job import durable, stored
from qlora_engine.job.events import EventLog
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.formats import RUNTIME
from qlora_engine.training.device import on_cpu

CHOSEN = ("compiled", "chosen")  # taken as recorded
FORMAT = "format"  # among what was chosen: that of the training rows, where the data set is the hub's


@dataclass(frozen=True)
class Runtime:
    """Everything outside job and data that decides how results are rounded.

    Attributes:
        backend: metal, cuda or cpu.
        device: its name.
        versions: of Python, mlx, mlx_lm and qlorad.
        blas: library, threads and kernels on the CPU backend; None elsewhere.
        compiled: whether MLX compiles the training step.
        chosen: what was measured or chosen for this run, by what it is for.
    """

    backend: str
    device: str
    versions: dict[str, str]
    blas: dict[str, Any] | None
    compiled: bool
    chosen: dict[str, Any] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, Any]:
        """What a checkpoint says of the process that wrote it."""
        return {"versions": self.versions, "backend": self.backend, "device": self.device, "blas": self.blas}

    @classmethod
    def found(cls) -> Runtime:
        """This process's."""
        cpu = on_cpu()
        backend = "cpu" if cpu else ("metal" if mx.metal.is_available() else "cuda")
        return cls(
            backend=backend,
            device=platform.processor() or platform.machine() if cpu else str(mx.device_info()["device_name"]),
            versions={
                "python": platform.python_version(),
                "mlx": importlib.metadata.version("mlx"),
                "mlx_lm": importlib.metadata.version("mlx-lm"),
                "qlorad": __version__,
            },
            blas=blas.as_json(blas.loaded()) if cpu else None,
            # On the CPU compiling calls the system's C++ compiler for every shape and gains little.
            compiled=not cpu,
        )


def settle(run: RunFolder, log: EventLog) -> Runtime:
    """The runtime of a run: recorded at its first start, compared at every later one.

    What differs is said by an `environment.changed` event; what can be chosen is taken as recorded.

    Raises:
        NewerFormat: a newer qlorad has recorded it.
        RunDamaged: the record cannot be read.
    """
    now = Runtime.found()
    if not run.runtime.exists():
        durable.write_json(run.runtime, {"format": RUNTIME.current, **asdict(now)})
        return now
    then = _read(run)
    taken = replace(now, compiled=then["compiled"], chosen=then["chosen"])
    for name, value in asdict(now).items():
        if name not in CHOSEN and then.get(name) != value:
            log.emit("environment.changed", name=name, then=then.get(name), now=value)
    return taken


def recorded(run: RunFolder, name: str) -> Any:
    """What `record` has written down under a name; None if nothing.

    Raises:
        NewerFormat, RunDamaged: as above.
    """
    return _read(run)["chosen"].get(name) if run.runtime.exists() else None


def record(run: RunFolder, found: Runtime, name: str, value: Any) -> Runtime:
    """Write a choice down, before anything is trained with it, so that a resumed run makes the same."""
    return _with_chosen(run, found, {**found.chosen, name: value})


def forget(run: RunFolder, found: Runtime) -> Runtime:
    """Take all choices back, of a run that begins: the model and the rows that they were for may be others by now."""
    return _with_chosen(run, found, {}) if found.chosen else found


def _with_chosen(run: RunFolder, found: Runtime, chosen: dict[str, Any]) -> Runtime:
    """Written down beside what the run found at its first start."""
    durable.write_json(run.runtime, {**_read(run), "chosen": chosen})
    return replace(found, chosen=chosen)


def _read(run: RunFolder) -> dict[str, Any]:
    """The record, in the format of now."""
    # Going on without it might round otherwise than until now, which a person may choose.
    with stored.needed(run.runtime, "Delete it, then `qlora retry`: all is measured anew, and may round otherwise."):
        then = RUNTIME.upgraded(json.loads(run.runtime.read_bytes()), run.runtime)
        kept = {"compiled": bool(then["compiled"]), "chosen": dict(then.get("chosen", {}))}
        return {**then, "format": RUNTIME.current, **kept}
