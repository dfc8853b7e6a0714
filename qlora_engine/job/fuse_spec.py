"""The file of a job that trains nothing: it makes one model of a base and the adapters that another job has learned."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from qlora_engine.job.jobfile import JobText
from qlora_engine.job.models import NAME
from qlora_engine.job.validate import validated
from qlora_engine.job.wishes import Text, Wishes

KEY = "fuse"  # what tells such a file from one that trains


class FuseSpec(Wishes):
    """A job that fuses. It begins where the other job has ended, and its result lies in its own run folder."""

    FILE: ClassVar[str] = "a job that fuses"

    fuse: Text = Field(description="the job whose adapters are fused: its id, a part of it, or its name")
    weights: Literal["adapters", "best"] = Field(
        default="adapters", description="the job's result, or its checkpoint of the lowest validation loss"
    )
    dequantize: bool = Field(default=False, description="make the model 16 bits wide, instead of quantized as the base")
    export: Literal["gguf"] | None = Field(
        default=None, description="write one file for llama.cpp and Ollama, in 16 bits, instead of an MLX model"
    )
    add_as: Annotated[str, Field(pattern=rf"^{NAME.pattern}$")] | None = Field(
        default=None, description="put the model among the home's models under this name"
    )

    @model_validator(mode="after")
    def _agree(self) -> FuseSpec:
        if self.export is not None and self.add_as is not None:
            raise ValueError("`add_as` is for an MLX model, and `export` writes none; keep one of them")
        return self

    @property
    def max_runtime(self) -> None:
        """It has no checkpoint at which it could be held."""
        return

    @property
    def in_16_bits(self) -> bool:
        """Whether nothing of the result is quantized."""
        return self.dequantize or self.export is not None


def is_fusing(values: dict[str, Any]) -> bool:
    """Whether the keys of a job file are those of a job that fuses."""
    return KEY in values


def validate(job: JobText) -> FuseSpec:
    """Turn the content of a job file into a `FuseSpec`. Raises `JobRejected` as for any job file."""
    return validated(FuseSpec, job)
