"""Examine a job file before it becomes a job: parse, validate, find its model, check its data.

Runs as a short-lived process of its own (`python -P -m qlora_engine.job.examine`), so that a hostile or huge
file cannot hurt whoever asks, and needs neither mlx nor a tokenizer. Each line on standard input is a request
(`ExamineRequest`) and is answered by a line on standard output (`Verdict`), both JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from qlora_engine.job import examine_fuse
from qlora_engine.job.errors import JobRejected, QloradError
from qlora_engine.job.folder import Home
from qlora_engine.job.fuse_spec import is_fusing
from qlora_engine.job.jobfile import JobText, parse, read_job_file
from qlora_engine.job.members import Member, ResolvedSweep, drafts, saying_which, sweep_of
from qlora_engine.job.overrides import applied
from qlora_engine.job.resolved import AnyResolved, ResolvedJob
from qlora_engine.job.services import check_installed
from qlora_engine.job.sources import find_adapter, find_data, find_model
from qlora_engine.job.targets import check_targets
from qlora_engine.job.validate import validate
from qlora_engine.job.verdict import ExamineRequest, Verdict, answer_requests


def examine_request(request: ExamineRequest) -> AnyResolved | ResolvedSweep:
    """`examine` as a request asks for it, of whichever kind the job is."""
    home, base = Path(request.home), Path(request.base) if request.base else None
    job_file = Path(request.job_file)
    text = read_job_file(job_file)[1] if request.text is None else parse(request.text, job_file.name)
    text = applied(text, request.overrides)
    if is_fusing(text.values):
        return examine_fuse.resolved(text, Home(home))
    model_at = cache(partial(find_model, home=home, base=base))  # the hub is asked once
    resolve = partial(_resolved, home=home, base=base, shown_as=request.shown_as, model_at=model_at)
    if (sweep := sweep_of(text)) is None:
        return resolve(text)
    members = []
    for draft in drafts(text, sweep):
        with saying_which(draft.settings):
            job = resolve(draft.text)
            if sweep.stop_worse_than is not None:
                _check_comparable(job)
        members.append(Member(settings=draft.settings, job=job))
    return ResolvedSweep(members=tuple(members), stop_worse_than=sweep.stop_worse_than)


def _check_comparable(job: ResolvedJob) -> None:
    """Raise `JobRejected` unless it has validation losses, which `stop_worse_than` compares."""
    if job.spec.val_batches == 0 or (job.data and "valid" not in job.data):
        why = "`val_batches` is 0" if job.spec.val_batches == 0 else f"{job.spec.data} holds no valid.jsonl"
        raise JobRejected(
            f"`sweep.stop_worse_than` compares validation losses, but {why}.",
            where="sweep.stop_worse_than",
            remedy="Remove it, or give the jobs validation data.",
        )


def examine(job_file: Path, *, home: Path, base: Path | None, shown_as: str | None = None) -> ResolvedJob:
    """Turn the file of a job that trains into a resolved job.

    Args:
        job_file: a regular file.
        home: QLORAD_HOME, whose `models/` gives short model names a meaning.
        base: the folder that relative paths start from, or None if there is none (a single dropped file).
        shown_as: what the user calls the file, for remedies.

    Raises:
        JobRejected: (or a subclass) with what is wrong, where, and the remedy.
    """
    return examine_text(read_job_file(job_file)[1], home=home, base=base, shown_as=shown_as or job_file.name)


def examine_text(text: JobText, *, home: Path, base: Path | None, shown_as: str) -> ResolvedJob:
    """`examine` for a job file that has been parsed, and whose values may have been replaced."""
    if is_fusing(text.values):
        raise JobRejected(
            "This job fuses what another has learned; nothing is trained.",
            where=shown_as,
            remedy=f"Submit it to the daemon: qlora submit {shown_as}",
        )
    return _resolved(text, home=home, base=base, shown_as=shown_as)


def _resolved(
    text: JobText,
    *,
    home: Path,
    base: Path | None,
    shown_as: str,
    model_at: Callable[[str], Path | None] | None = None,
) -> ResolvedJob:
    """`examine_text` for one that is known to train; `model_at` finds models in place of `find_model`."""
    spec = validate(text)
    try:
        check_installed(spec)
        check_targets(spec.notify, Home(home).targets)
        model_path = model_at(spec.model) if model_at is not None else find_model(spec.model, home=home, base=base)
        return ResolvedJob(
            spec=spec,
            model_path=str(model_path) if model_path else None,
            data=find_data(spec, base, shown_as),
            resume_adapter_file=find_adapter(spec, base, shown_as),
        )
    except JobRejected as error:
        error.where = text.place_of(error.where or "")
        raise


def verdict_on(request: ExamineRequest) -> Verdict:
    """The answer to a request."""
    try:
        return Verdict.of(examine_request(request))
    except QloradError as error:
        return Verdict.against(error)


def main() -> int:
    """Examine what is asked for until standard input ends."""
    return answer_requests(verdict_on)


if __name__ == "__main__":
    sys.exit(main())
