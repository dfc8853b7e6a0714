"""The rows of a run: taken from the cache or tokenized, counted, and put into the order in which they are trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from qlora_engine.job.datafiles import SPLITS, DataFormat, Split, digest
from qlora_engine.job.errors import DataRejected
from qlora_engine.job.events import EventLog
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.training.batches import Plan
from qlora_engine.training.documents import Documents
from qlora_engine.training.hub_data import read_hub_documents
from qlora_engine.training.ladder import Layout
from qlora_engine.training.model import Base, vocabulary
from qlora_engine.training.token_cache import TokenCache
from qlora_engine.training.token_source import TokenSource


@dataclass(frozen=True)
class Data:
    """What a run trains and is tested on.

    Attributes:
        documents: by split.
        format: of the training rows.
        hashes: SHA-256 of each data file as it is now; none for a data set of the hub.
        tokens_from: the cache alone, or text.
        seconds: it took.
    """

    documents: Mapping[Split, Documents]
    format: DataFormat
    hashes: Mapping[Split, str]
    tokens_from: Literal["cache", "text"]
    seconds: float


def read_data(
    job: ResolvedJob,
    base: Base,
    layout: Layout,
    *,
    beat: Callable[[], None],
    cache: TokenCache | None,
    log: EventLog,
) -> Data:
    """The job's data as tokens, cut to the layout's longest row.

    Args:
        beat: called now and then while rows are tokenized.
        cache: where tokens are kept for the next start; None keeps none.

    Raises:
        DataRejected: a file changed since the job was accepted and the job does not say to start over, a row
            cannot be tokenized, or one that is not trained on has a token that the model does not know.
    """
    started = time.perf_counter()
    if not job.data:
        spec = job.spec.model_copy(update={"max_seq_length": layout.longest})
        found, kind = read_hub_documents(spec, base.tokenizer)
        for part, rows in found.items():
            if part != "train":
                check_tokens(rows, f"{spec.data} ({part})", vocabulary(base.model))
        return Data(found, kind, {}, "text", time.perf_counter() - started)
    hashes = _hashes(job)
    source = TokenSource(job.spec, base.tokenizer, base.path, cache)
    documents: dict[Split, Documents] = {}
    for part, sha256 in hashes.items():
        file = job.data[part]
        documents[part] = Documents(source.rows(file, sha256, beat, log), layout.longest)
        if part != "train":  # of the training rows the guard takes care, one by one
            check_tokens(documents[part], file.path, vocabulary(base.model))
    tokens_from: Literal["cache", "text"] = "text" if source.tokenized else "cache"
    return Data(documents, job.data["train"].format, hashes, tokens_from, time.perf_counter() - started)


def _hashes(job: ResolvedJob) -> dict[Split, str]:
    wanted = [part for part in SPLITS if part in job.data and (part != "test" or job.spec.test)]
    hashes: dict[Split, str] = {}
    for part in wanted:
        file = job.data[part]
        hashes[part] = digest(Path(file.path))
        if hashes[part] != file.sha256 and job.spec.on_change == "refuse":
            raise DataRejected(
                f"{Path(file.path).name} is not what it was when the job was accepted.",
                where=file.path,
                remedy="Put the old content back, set on_change: restart, or submit the job again.",
            )
    return hashes


def check_tokens(documents: Documents, source: str, known: int) -> None:
    """Raise `DataRejected` if a row holds a token that the model does not know: MLX would read what lies beyond."""
    if found := documents.first_over(known - 1):
        row, highest = found
        raise DataRejected(
            f"Row {row + 1} has token {highest}, but the model knows {known} tokens.",
            where=source,
            remedy="The tokenizer is not this model's: put the files of one model into its folder.",
        )


def plan_of(job: ResolvedJob, documents: Mapping[Split, Documents]) -> Plan:
    """The order of the run's rows.

    Raises:
        DataRejected: no training row has a target.
    """
    if not documents["train"].targets.any():
        raise DataRejected(
            "No training row has anything to learn.",
            where=job.data["train"].path if job.data else job.spec.data,
            remedy="With `mask_prompt`, every prompt fills max_seq_length or no turn is an assistant's: "
            "raise max_seq_length or check the roles.",
        )
    spec = job.spec
    return Plan.of(
        documents["train"],
        batch_size=spec.batch_size,
        accumulation=spec.grad_accumulation_steps,
        seed=spec.seed,
        iters=spec.iters,
        epochs=spec.epochs,
    )


def say_data(job: ResolvedJob, data: Data, plan: Plan, log: EventLog) -> None:
    """Say what the data holds, and what of it is lost."""
    rows = data.documents["train"]
    kept, cut = int(rows.lengths.sum(dtype=np.int64)), int(rows.cut.sum(dtype=np.int64))
    log.emit(
        "data.loaded",
        format=job.data["train"].format if job.data else "hub",
        **{split: len(data.documents.get(split, ())) for split in SPLITS},
        tokens=kept,
        supervised=int(rows.targets.sum(dtype=np.int64)),
        truncated=int(np.count_nonzero(rows.cut)),
        lost_share=round(cut / (kept + cut), 4) if cut else 0.0,
        nothing_to_learn=len(rows) - int(np.count_nonzero(rows.targets)),
        steps=plan.steps,
        updates=plan.updates,
        tokens_from=data.tokens_from,
        seconds=round(data.seconds, 3),
    )
