"""Claimed submissions in `jobs/.taking/`: from the moment of the claim each is in exactly one place on disk.

A claim is a folder `<key>/` with `claim.json` and `source/`, which holds the dropped file or is the dropped
folder itself. It ends when `source/` has become `accepted/<job id>/`, or what was dropped lies in `rejected/`.
A daemon that is killed in between finds it at its next start and goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from qlora_daemon import settling
from qlora_daemon.settling import Found
from qlora_engine.job import durable
from qlora_engine.job.errors import JobRejected, QloradError
from qlora_engine.job.folder import Home
from qlora_engine.job.formats import CLAIM
from qlora_engine.job.record import utc_now
from qlora_engine.job.text import plain, plain_lines
from qlora_worker.messages import Submission

Kind = Literal["file", "folder", "request", "letter"]  # a letter is a request that was left in the watched folder

_PASSING = ".passing-"  # a claim that is being made, or has ended

NAME_BYTES = 200


@dataclass(frozen=True)
class Problem:
    """An error as it is kept in a file."""

    what: str
    where: str | None = None
    remedy: str | None = None

    @classmethod
    def of(cls, error: QloradError) -> Problem:
        """The text of an error."""
        return cls(error.what, error.where, error.remedy)

    def as_error(self) -> JobRejected:
        """The error again."""
        return JobRejected(self.what, where=self.where, remedy=self.remedy)


@dataclass(frozen=True)
class Claim:
    """One claimed submission."""

    path: Path
    name: str  # what the user calls the file or folder
    kind: Kind
    job_file_name: str = ""  # within `source`; empty for what cannot be a job
    base: str | None = None  # where the relative paths of a request start
    again: bool = False  # wanted even if a job just like it has not ended
    overrides: tuple[str, ...] = ()  # of a request or letter: `key=value` in place of what the file says
    text: str | None = None  # of a request, which alone has no folder
    problem: Problem | None = field(default=None)  # known before it is examined

    @property
    def key(self) -> str:
        """Makes the submission unique: the request's key, or one of our own."""
        return self.path.name

    @property
    def source(self) -> Path:
        """The folder that becomes `accepted/<job id>/`."""
        return self.path / "source"

    @property
    def dropped(self) -> Path:
        """The file or folder that the user dropped, where it lies now."""
        return self.source if self.kind == "folder" else self.source / self.name

    @property
    def job_file(self) -> Path:
        """The job file; of a request only its name counts."""
        return self.source / self.job_file_name

    def content(self) -> bytes:
        """What the job file holds."""
        return self.job_file.read_bytes() if self.text is None else self.text.encode()

    @property
    def submitted_as(self) -> Path:
        """The file that a request or letter was made from, on the client's side."""
        return Path(self.base or "") / self.name

    @property
    def relative_from(self) -> Path | None:
        """The folder that the job's relative paths start from, if there is one."""
        return self.source if self.kind == "folder" else Path(self.base) if self.base else None

    def drop(self, *, sync: bool = True) -> None:
        """End the claim; what was dropped lies elsewhere by now, or was never here."""
        if self.text is not None:
            return
        ended = self.path.with_name(_PASSING + self.key)
        self.path.rename(ended)  # all at once; a kill in the midst of the removal leaves no half claim
        if sync:
            durable.sync_folder(ended.parent)
        shutil.rmtree(ended)


def claim_found(home: Home, found: Found, problem: QloradError | None) -> Claim:
    """Claim something that has settled in the watched folder.

    Raises:
        OSError: it has gone, or the folders cannot be written.
    """
    kind: Kind = "folder" if found.kind is settling.Kind.FOLDER else "file"
    claim = Claim(
        path=home.taking / f"{utc_now():%Y%m%d-%H%M%S}-{secrets.token_hex(4)}",
        name=found.name,
        kind=kind,
        job_file_name=found.job_file or found.name,
        problem=Problem.of(problem) if problem else None,
    )
    _make(claim)
    try:
        if kind == "file":
            claim.source.mkdir()
            durable.sync_folder(claim.path)
        durable.move(found.path, claim.dropped)
    except OSError:
        if not os.path.lexists(claim.dropped):  # moved, and only the sync failed: the claim stands
            claim.drop()
        raise
    return claim


def claim_request(home: Home, key: str, submission: Submission) -> Claim:
    """Claim a submission that came as text. It needs no folder: until it is a job it stays on the stream."""
    return _submitted(home, key, submission, "request", text=submission.text)


def claim_letter(home: Home, key: str, submission: Submission, path: Path) -> Claim:
    """Claim a submission that was left in the watched folder as the file `path`, which this removes.

    Raises:
        OSError: the folders cannot be written.
    """
    claim = _submitted(home, key, submission, "letter")
    _make(claim, submission.text)
    path.unlink(missing_ok=True)
    return claim


def _submitted(home: Home, key: str, submission: Submission, kind: Kind, text: str | None = None) -> Claim:
    return Claim(
        path=home.taking / key,
        name=submission.name,
        kind=kind,
        job_file_name=submission.name,
        base=submission.base,
        again=submission.again,
        overrides=submission.overrides,
        text=text,
    )


def _make(claim: Claim, text: str | None = None) -> None:
    """Make the claim's folder under another name first: it is complete or not there."""
    temporary = claim.path.with_name(_PASSING + claim.key)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    content = {key: value for key, value in asdict(claim).items() if key not in ("path", "text")}
    durable.write_json(temporary / "claim.json", {"format": CLAIM.current, **content})
    if text is not None:
        (temporary / "source").mkdir()
        durable.write_text(temporary / "source" / claim.name, text)
        durable.sync_folder(temporary)
    durable.move(temporary, claim.path)


def unfinished(home: Home) -> Iterator[Path]:
    """The folders of claims that a daemon had not finished, oldest first; empty leftovers are removed."""
    for path in sorted(home.taking.iterdir(), key=lambda path: path.lstat().st_mtime_ns):
        if path.name.startswith(_PASSING):
            shutil.rmtree(path)  # nothing of the user's is in it
        elif path.is_dir() and (path / "claim.json").is_file():
            yield path


def read_claim(path: Path) -> Claim:
    """A claim that an earlier daemon made.

    Raises:
        OSError, ValueError: it cannot be read, or a newer daemon has made it.
    """
    content = CLAIM.upgraded(json.loads((path / "claim.json").read_bytes()), path)
    content = {key: value for key, value in content.items() if key != "format"}
    problem = content.pop("problem")
    overrides = tuple(content.pop("overrides", ()))
    return Claim(path=path, problem=Problem(**problem) if problem else None, overrides=overrides, **content)


def settle_rejection(claim: Claim, rejected: Path, problem: Problem | None) -> tuple[Path, Problem]:
    """Move what was dropped to `rejected/`, with a text beside it that says why.

    Args:
        claim: the claim, which ends.
        rejected: the folder.
        problem: why; None to go on with a rejection that had begun, whose reason is on disk.

    Returns:
        Where it lies now, and why.
    """
    decided = claim.path / "rejection.json"
    if problem is not None:
        target = _free_name(rejected, claim.name)
        shown = {key: _as_seen(text, claim, target) for key, text in asdict(problem).items()}
        following = {"name": target.name, "next": _next_step(claim), "time": utc_now().isoformat()}
        durable.write_json(decided, following | shown)
    decision: dict[str, str] = json.loads(decided.read_bytes())
    target = rejected / decision["name"]
    if os.path.lexists(claim.dropped):
        durable.move(claim.dropped, target)
    reason = claim.path / "reason.txt"
    durable.write_text(reason, _explain(decision))
    durable.move(reason, _text_beside(target))
    claim.drop()
    return target, Problem(decision["what"], decision["where"], decision["remedy"])


def was_rejected(claim: Claim) -> bool:
    """Whether the rejection of this claim had begun."""
    return (claim.path / "rejection.json").exists()


def _free_name(folder: Path, name: str) -> Path:
    path, number = Path(_short(name)), 1
    target = folder / path.name
    while os.path.lexists(target) or os.path.lexists(_text_beside(target)):
        number += 1
        target = folder / f"{path.stem}-{number}{path.suffix}"
    return target


def _short(name: str) -> str:
    """A name that leaves room for a number and `.txt` in the 255 bytes that file systems allow."""
    if len(os.fsencode(name)) <= NAME_BYTES:
        return name
    path = Path(name)
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= 20 else ""
    return os.fsencode(path.stem)[: NAME_BYTES - 20].decode(errors="ignore") + suffix


def _text_beside(target: Path) -> Path:
    return target.with_name(f"{target.name}.txt")


def _as_seen(text: str | None, claim: Claim, target: Path) -> str | None:
    """Paths into the claim as the user will find them."""
    if not text:
        return text
    seen = target if claim.kind == "folder" else target.parent
    return text.replace(str(claim.dropped), str(target)).replace(str(claim.source), str(seen))


def _next_step(claim: Claim) -> str:
    if claim.kind != "letter":
        return "Mend it and drop it into the jobs folder again."
    return f"Mend it and submit it again: qlora submit {shlex.quote(str(claim.submitted_as))}"


def _explain(decision: Mapping[str, str | None]) -> str:
    lines = [
        f"{plain(decision['name'])} was not accepted as a job.",
        "",
        f"what:   {plain_lines(decision['what'])}",
        f"where:  {plain_lines(decision['where'] or decision['name'])}",
        f"remedy: {plain_lines(decision['remedy'] or 'Correct it.')}",
        f"time:   {decision['time']}",
        "",
        plain(decision.get("next") or "Mend it and drop it into the jobs folder again."),
    ]
    return "\n".join(lines) + "\n"
