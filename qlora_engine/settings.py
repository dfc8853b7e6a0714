"""Settings that the engine reads from the environment, once, at the start of a program."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from qlora_engine.job.errors import BadSetting
from qlora_engine.job.expected import expected
from qlora_engine.job.folder import USUAL_HOME, Home, absolute


class EngineSettings(BaseSettings):
    """`QLORAD_*` variables that matter to training, with the daemon or without it."""

    model_config = SettingsConfigDict(env_prefix="QLORAD_", extra="ignore", frozen=True)

    home: Path = Field(default=USUAL_HOME, description="jobs, runs, models and logs")
    gpu_lock: Path = Field(
        default=Path("~/.cache/qlorad/gpu.lock"),  # no host name in it: a Mac's changes with the network
        description="the lock that every use of the GPU takes; one per machine and user",
    )
    cpu_blas: str = Field(
        default="auto",
        description="BLAS library for MLX's CPU backend on Linux: auto, off, or the path of a library",
    )
    token_cache_gb: float = Field(
        default=10.0,
        ge=0,
        allow_inf_nan=False,
        description="tokens kept in the home, 10^9 bytes; what was not used for longest goes first; 0 keeps none",
    )
    memory_share: float = Field(
        default=1.0,
        ge=0.1,
        le=1.0,
        allow_inf_nan=False,
        description="of the memory that the system recommends for training, how much any job may use",
    )
    keep_awake: bool = Field(default=True, description="keep the machine from sleeping by itself while a job trains")
    report: bool = Field(default=True, description="write report.html when a run has ended")

    @field_validator("home", "gpu_lock", mode="before")
    @classmethod
    def _are_absolute(cls, value: Any, about: ValidationInfo) -> Any:  # whatever a caller gives
        """A compose file that passes an unset variable on gives an empty one, which would be the current folder."""
        if isinstance(value, str) and not value.strip():
            value = cls.model_fields[about.field_name or ""].default
        return absolute(value) if isinstance(value, str | Path) else value

    @classmethod
    def read(cls) -> Self:
        """The settings of this process.

        Raises:
            BadSetting: a variable has a value that cannot be used.
        """
        try:
            return cls()
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            name = f"QLORAD_{str(problem['loc'][0]).upper()}" if problem["loc"] else "QLORAD_*"
            raise BadSetting(
                f"{name} cannot be used: {_in_words(problem)}.",
                where=name,
                remedy="Correct or unset the variable.",
            ) from None

    @property
    def folders(self) -> Home:
        """The home folder, absolute."""
        return Home(self.home.expanduser().absolute())

    @property
    def gpu_lock_path(self) -> Path:
        """The GPU lock, absolute."""
        return self.gpu_lock.expanduser().absolute()


def _in_words(problem: ErrorDetails) -> str:
    """What is wrong with a value. Our own validators know which may not be shown, and say it themselves."""
    if problem["type"] == "value_error":
        return problem["msg"].removeprefix("Value error, ")
    return f"it is {str(problem['input'])!r:.40}, but it {expected(problem['msg'], truth='1 or 0')}"
