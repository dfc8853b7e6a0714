"""The rows of a run: read and tokenized, counted, and put into the order in which they are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from qlora_engine.job.datafiles import SPLITS, Split, digest
from qlora_engine.job.errors import DataRejected
from qlora_engine.job.events import EventLog
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.training.batches import Plan
from qlora_engine.training.data import Document, read_documents
from qlora_engine.training.hub_data import read_hub_documents
from qlora_engine.training.ladder import Layout
from qlora_engine.training.model import Base, vocabulary

Documents = dict[Split, list[Document]]


def read_data(
    job: ResolvedJob, base: Base, layout: Layout, beat: Callable[[], None]
) -> tuple[Documents, dict[Split, str]]:
    """Tokenize the job's data; with the hash of each file. `beat` is called now and then.

    Raises:
        DataRejected: a file changed since the job was accepted and the job does not say to start over, or a row
            cannot be tokenized.
    """
    spec = job.spec.model_copy(update={"max_seq_length": layout.longest})
    if not job.data:
        return read_hub_documents(spec, base.tokenizer), {}
    wanted = [part for part in SPLITS if part in job.data and (part != "test" or job.spec.test)]
    documents: Documents = {}
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
        documents[part] = read_documents(Path(file.path), file.format, spec, base.tokenizer, beat)
        if part != "train":  # of the training rows the guard takes care, one by one
            check_tokens(documents[part], file.path, vocabulary(base.model))
    return documents, hashes


def check_tokens(documents: Sequence[Document], source: str, known: int) -> None:
    """Raise `DataRejected` if a row holds a token that the model does not know: MLX would read what lies beyond."""
    for row, document in enumerate(documents, 1):
        highest = int(document.tokens.max(initial=0))
        if highest >= known:
            raise DataRejected(
                f"Row {row} has token {highest}, but the model knows {known} tokens.",
                where=source,
                remedy="The tokenizer is not this model's: put the files of one model into its folder.",
            )


def plan_of(job: ResolvedJob, documents: Mapping[Split, list[Document]]) -> Plan:
    """The order of the run's rows.

    Raises:
        DataRejected: no training row has a target.
    """
    if not any(document.targets for document in documents["train"]):
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


def say_data(job: ResolvedJob, documents: Documents, plan: Plan, log: EventLog) -> None:
    """Say what the data holds, and what of it is lost."""
    rows = documents["train"]
    kept, cut = sum(map(len, rows)), sum(document.cut for document in rows)
    log.emit(
        "data.loaded",
        format=job.data["train"].format if job.data else "hub",
        **{split: len(documents.get(split, ())) for split in SPLITS},
        tokens=kept,
        supervised=sum(document.targets for document in rows),
        truncated=sum(document.cut > 0 for document in rows),
        lost_share=round(cut / (kept + cut), 4) if cut else 0.0,
        nothing_to_learn=sum(document.targets == 0 for document in rows),
        steps=plan.steps,
        updates=plan.updates,
    )
