"""What examining a job's data and model has shown: counts, memory, time, and what a person should know."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Survey(BaseModel):
    """The facts about a job that need its tokenizer and its model's shape. None where something cannot be known.

    Attributes:
        rows, tokens, supervised: of the training data; tokens before they are cut, supervised what is learned.
        truncated: rows longer than max_seq_length; `lost_share` of the tokens are cut.
        nothing_to_learn: rows without a target.
        longest: tokens of the longest row.
        sampled: rows that were looked at, when not all of them.
        valid: rows of validation data.
        steps: micro-batches of the whole run.
        peak_gb: estimated peak memory, 10^9 bytes; `parts` by what it is for.
        limit_gb: what training may use, 10^9 bytes; `limit_source` says who says so.
        backend: of MLX, here.
        seconds: estimated time of the whole job; `seconds_source` says how.
        warnings: whole sentences.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int | None = None
    tokens: int | None = None
    supervised: int | None = None
    truncated: int | None = None
    lost_share: float | None = None
    nothing_to_learn: int | None = None
    longest: int | None = None
    sampled: int | None = None
    valid: int | None = None
    steps: int | None = None
    peak_gb: float | None = None
    parts: dict[str, float] = {}
    limit_gb: float | None = None
    limit_source: str | None = None
    backend: str | None = None
    seconds: float | None = None
    seconds_source: str | None = None
    warnings: list[str] = []

    def as_event(self) -> dict[str, Any]:
        """The fields of `job.examined`."""
        return self.model_dump(
            include={
                "rows", "tokens", "supervised", "truncated", "lost_share", "nothing_to_learn", "sampled", "peak_gb",
                "limit_gb", "seconds", "warnings",
            }
        )  # fmt: skip
