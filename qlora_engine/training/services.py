"""Each service of `report_to` behind one small interface; a resumed run goes on with its run at the service."""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qlora_engine.job.services import is_installed

PROJECT = "qlorad"  # for a service that needs a project when the job names none
FLUSH_SECONDS = 10


@dataclass(frozen=True)
class Identity:
    """What a service is told of a run.

    Attributes:
        run: its id at the service, the same in every attempt.
        project: the job's `project_name`.
        folder: where a service may keep its files.
        config: the job.
    """

    run: str
    project: str | None
    folder: str
    config: dict[str, Any]


class Service(Protocol):
    """Takes the numbers of a run. Any method may raise anything."""

    def send(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step."""

    def close(self) -> None:
        """Send what is left, and end."""


def open_service(name: str, identity: Identity) -> Service:
    """Connect to a service; may take long, and may raise anything."""
    opening: Mapping[str, Callable[[Identity], Service]] = {
        "wandb": lambda identity: _OfMlxLm("wandb", identity),
        "swanlab": lambda identity: _OfMlxLm("swanlab", identity),
        "tensorboard": _TensorboardX if is_installed("tensorboardX") else _Tensorboard,
        "trackio": _Trackio,
    }
    return opening[name](identity)


class _OfMlxLm:
    """wandb or swanlab, through mlx_lm's callbacks.

    The callbacks name no run to go on with, but both services read that from the environment. What a person has set
    there stays.
    """

    def __init__(self, name: str, identity: Identity) -> None:
        os.environ.setdefault(f"{name.upper()}_RUN_ID", identity.run)
        os.environ.setdefault(f"{name.upper()}_RESUME", "allow")
        os.environ.setdefault("WANDB_CONSOLE", "off")  # this process prints nothing of the run's
        self._module = importlib.import_module(name)
        self._callback = _mlx_lm_callbacks().get_reporting_callbacks(
            report_to=name, project_name=identity.project, log_dir=identity.folder, config=identity.config
        )

    def send(self, step: int, values: Mapping[str, float]) -> None:
        report = self._callback.on_val_loss_report if "val_loss" in values else self._callback.on_train_loss_report
        report({"iteration": step, **values})

    def close(self) -> None:
        self._module.finish()


def _mlx_lm_callbacks() -> Any:
    """mlx_lm's module of callbacks alone: importing it by name would bring mlx and transformers with it."""
    package = importlib.util.find_spec("mlx_lm")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("mlx_lm is not installed")
    path = Path(package.origin).with_name("tuner") / "callbacks.py"
    found = importlib.util.spec_from_file_location("mlx_lm_callbacks", path)
    if found is None or found.loader is None:
        raise ModuleNotFoundError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


class _TensorboardX:
    """TensorBoard's event files, written by tensorboardX into the run folder's tensorboard/."""

    def __init__(self, identity: Identity) -> None:
        writer = importlib.import_module("tensorboardX").SummaryWriter
        folder = str(Path(identity.folder) / "tensorboard")
        # A suffix, because the writer replaces a file of its host that an attempt began in the same second.
        self._writer = writer(folder, flush_secs=FLUSH_SECONDS, filename_suffix=f".{os.getpid()}")

    def send(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Tensorboard:
    """The same files, written by TensorBoard itself."""

    def __init__(self, identity: Identity) -> None:
        self._event = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
        self._summary = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
        writer = importlib.import_module("tensorboard.summary.writer.event_file_writer").EventFileWriter
        self._writer = writer(str(Path(identity.folder) / "tensorboard"), flush_secs=FLUSH_SECONDS)

    def send(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=scalars)))

    def close(self) -> None:
        self._writer.close()


class _Trackio:
    """Trackio's local data base, or the space that its own settings name."""

    def __init__(self, identity: Identity) -> None:
        self._run = importlib.import_module("trackio").init(
            project=identity.project or PROJECT,
            name=identity.run,
            config=identity.config,
            resume="allow",
            embed=False,
        )

    def send(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
