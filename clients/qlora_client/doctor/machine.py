"""What is examined: this system, the settings of this shell, and the home that they name."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from qlora_client.home import plain_home
from qlora_engine.job.errors import BadSetting
from qlora_engine.job.folder import USUAL_HOME, Home
from qlora_worker.settings import Settings

System = Literal["macos", "linux"]


@dataclass(frozen=True)
class Machine:
    """What every look begins from.

    Attributes:
        system: whose ways apply.
        settings: of this shell, or the defaults where `problem` says why they cannot be used.
        environment: of this process.
        user_home: `~`, where macOS has the folders that it guards.
    """

    system: System
    settings: Settings
    problem: BadSetting | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    user_home: Path = Path("/")

    @property
    def home(self) -> Home:
        """QLORAD_HOME and the places in it."""
        return self.settings.folders

    @property
    def is_mac(self) -> bool:
        """It is a Mac."""
        return self.system == "macos"


def this_machine(platform: str = sys.platform) -> Machine:
    """The machine that this process runs on; whatever is not macOS is taken for Linux."""
    system: System = "macos" if platform == "darwin" else "linux"
    problem = None
    try:
        settings = Settings.read()
    except BadSetting as error:
        problem = error
        settings = Settings.model_construct(home=_home())  # the defaults: the environment is what cannot be used
    return Machine(system, settings, problem, dict(os.environ), Path.home())


def _home() -> Path:
    try:
        return plain_home().path
    except BadSetting:  # the home is what cannot be used
        return USUAL_HOME
