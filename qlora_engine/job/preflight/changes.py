"""The smallest change that would make a job fit into memory, worded for a person."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from qlora_engine.job.preflight.backends import Backend
from qlora_engine.job.preflight.batch import Batch
from qlora_engine.job.preflight.memory import GIGA, Estimate, estimate, trained_layers
from qlora_engine.job.preflight.shape import ModelShape
from qlora_engine.job.spec import JobSpec

SHORTEST = 128  # tokens; shorter sequences teach little


@dataclass(frozen=True)
class Change:
    """A change to the job file and what it leads to; `estimate` is None where nothing but another model helps."""

    text: str
    estimate: Estimate | None

    def __str__(self) -> str:
        if self.estimate is None:
            return self.text
        return f"{self.text}: {self.estimate.total / GIGA:.1f} GB would be enough."


def smallest_change(
    spec: JobSpec, shape: ModelShape, batch: Batch, backend: Backend, *, dequantized: bool, limit: float
) -> Change | None:
    """The first of the possible changes, in the order of what they cost, that fits; None if the job fits as it is.

    Recomputation costs time alone. Smaller micro-batches with more accumulation learn the same. Shorter sequences
    and fewer trained layers learn less.
    """
    if estimate(spec, shape, batch, backend, dequantized=dequantized).fits(limit):
        return None
    for text, changed, smaller in _changes(spec, shape, batch):
        found = estimate(changed, shape, smaller, backend, dequantized=dequantized)
        if found.fits(limit):
            return Change(text, found)
    return Change("Use a smaller model, or one with fewer bits: no other change would be enough.", None)


def _changes(spec: JobSpec, shape: ModelShape, batch: Batch) -> Iterator[tuple[str, JobSpec, Batch]]:
    """Changes that build on one another: every later one keeps those before."""
    words: list[str] = []
    if not batch.recompute:
        batch = replace(batch, recompute=True)
        words = ["grad_checkpoint: true"]
        yield _said(words), spec, batch
    kept = words
    for rows in _divisors(spec.batch_size):
        if rows < batch.rows:
            batch = batch.of_rows(rows)
            accumulation = spec.grad_accumulation_steps * spec.batch_size // rows
            words = [*kept, f"batch_size: {rows}", f"grad_accumulation_steps: {accumulation}"]
            yield _said(words), spec, batch
    kept = words
    whole = batch
    for quarters in (3, 2, 1):
        length = (whole.width + 1) * quarters // 4
        if length >= SHORTEST:
            batch = whole.cut(length)
            words = [*kept, f"max_seq_length: {length}"]
            yield _said(words), spec, batch
    kept, layers = words, trained_layers(spec, shape)
    while layers > 1:
        layers //= 2
        fewer = spec.model_copy(update={"num_layers": layers})
        yield _said([*kept, f"num_layers: {layers}"]), fewer, batch


def _divisors(number: int) -> list[int]:
    """Largest first; each at most half of the one before, so that few are tried."""
    found = [number]
    for candidate in range(number // 2, 0, -1):
        if number % candidate == 0 and 2 * candidate <= found[-1]:
            found.append(candidate)
    return found[1:]


def _said(settings: list[str]) -> str:
    *first, last = settings
    return f"Set {', '.join(first)} and {last}" if first else f"Set {last}"
