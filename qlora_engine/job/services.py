"""The services that `report_to` names, and whether this Python has what they need."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping

from qlora_engine.job.errors import JobRejected
from qlora_engine.job.spec import JobSpec

# Any one of a service's packages is enough; the first is the one to install.
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "wandb": ("wandb",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
}


def check_installed(spec: JobSpec) -> None:
    """Make sure that the packages of `report_to` are there, without importing them.

    Raises:
        JobRejected: one is missing; with the command that installs it.
    """
    for name in spec.reporters:
        if not any(is_installed(package) for package in PACKAGES[name]):
            package = PACKAGES[name][0]
            raise JobRejected(
                f"`report_to` names {name}, but its package `{package}` is not installed.",
                where=f"report_to: {name}",
                remedy=f"Install it beside qlorad: {sys.executable} -m pip install {package}; or remove {name}.",
            )


def is_installed(package: str) -> bool:
    """Whether `import package` finds a real package.

    wandb leaves folders named `wandb` where it ran, and Python takes any folder for a package without content.
    """
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None
