"""The same job twice within the run of the first: how it is known again, and what is said of it."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence

from qlora_daemon.claims import Claim
from qlora_engine.job.errors import DuplicateJob
from qlora_engine.job.record import JobRecord
from qlora_engine.job.resolved import AnyResolved, ResolvedFuse


def content_of(text: bytes, job: AnyResolved, overrides: Sequence[str] = ()) -> str:
    """What makes a submission the same as another: the job file byte for byte, and the data and model it leads to.

    What is set in place of the file's own values counts with the file.

    Neither its name nor its place counts, nor what else lies in its folder.
    """
    adapters, data = (job.source, {}) if isinstance(job, ResolvedFuse) else (str(job.resume_adapter_file), job.data)
    parts = [hashlib.sha256(text).hexdigest(), str(job.model_path), adapters]
    parts += [f"set {override}" for override in overrides]
    parts += [f"{split} {file.sha256}" for split, file in sorted(data.items())]
    return hashlib.sha256("\n".join(parts).encode(errors="backslashreplace")).hexdigest()


def refused(claim: Claim, same: JobRecord) -> DuplicateJob:
    """The error for a submission that is the same as a job which has not ended."""
    if same.kind == "fuse":
        return DuplicateJob(
            f"{same.id} makes just this already, and is {same.state}.",
            where=claim.name,
            remedy=f"Follow that one: qlora logs -f {same.id}",
        )
    path = claim.submitted_as if claim.kind in ("request", "letter") else claim.dropped
    other = "give it a `name` of its own" if claim.kind == "folder" else "change it (a `name` of its own is enough)"
    if same.group is None:
        what, follow = f"the same job as {same.id}, which is {same.state}", f"qlora logs -f {same.id}"
    else:
        what, follow = f"the same sweep as {same.group}, not all of which has ended", f"qlora show {same.group}"
    return DuplicateJob(
        f"{claim.name} is {what}: job file and data are equal.",
        where=claim.name,
        remedy=f"Follow that one with `{follow}`. To train it a second time {other}, "
        f"or run: qlora submit --again {shlex.quote(str(path))}",
    )
