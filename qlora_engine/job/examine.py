"""Examine a job file before it becomes a job: parse, validate, find its model, check its data.

Runs as a short-lived process of its own (`python -P -m qlora_engine.job.examine`), so that a hostile or huge
file cannot hurt whoever asks, and needs neither mlx nor a tokenizer. Each line on standard input is a request
(`ExamineRequest`) and is answered by a line on standard output (`Verdict`), both JSON.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Self, TypedDict, TypeVar

from pydantic import BaseModel, ConfigDict

from qlora_engine.job import datafiles, examine_fuse
from qlora_engine.job.errors import DataRejected, JobRejected, ModelRejected, QloradError
from qlora_engine.job.folder import Home
from qlora_engine.job.fuse_spec import is_fusing
from qlora_engine.job.jobfile import JobText, parse, read_job_file
from qlora_engine.job.members import Member, ResolvedSweep, drafts, saying_which, sweep_of
from qlora_engine.job.models import resolve
from qlora_engine.job.overrides import applied
from qlora_engine.job.resolved import AnyResolved, ResolvedJob
from qlora_engine.job.services import check_installed
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.survey import Survey
from qlora_engine.job.targets import check_targets
from qlora_engine.job.validate import validate


class ExamineRequest(BaseModel):
    """What to examine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_file: str
    text: str | None = None  # what it holds, if it is not to be read; only its name counts then
    home: str
    base: str | None = None  # the folder that relative paths start from; None forbids them
    shown_as: str  # what the user calls the file
    overrides: tuple[str, ...] = ()  # `key=value` in place of what the file says
    measure: str | None = None  # the GPU lock: a survey may time the device while it is free


class Verdict(BaseModel):
    """The outcome: a resolved job with what a survey found out, the jobs of a sweep, or what is wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: AnyResolved | None = None
    survey: Survey | None = None
    sweep: ResolvedSweep | None = None
    exit_code: int = 0
    what: str | None = None
    where: str | None = None
    remedy: str | None = None

    @property
    def accepts(self) -> bool:
        """Nothing is wrong."""
        return self.job is not None or self.sweep is not None

    @classmethod
    def of(cls, found: AnyResolved | ResolvedSweep, survey: Survey | None = None) -> Self:
        """What was asked for, examined; of a sweep each job has its own survey."""
        return cls(sweep=found) if isinstance(found, ResolvedSweep) else cls(job=found, survey=survey)

    @classmethod
    def against(cls, error: QloradError) -> Self:
        """A rejection."""
        return cls(what=error.what, where=error.where, remedy=error.remedy, exit_code=int(error.exit_code))


M = TypeVar("M", ExamineRequest, Verdict)


class _Where(TypedDict):
    home: Path
    base: Path | None
    shown_as: str


def examine_request(request: ExamineRequest) -> AnyResolved | ResolvedSweep:
    """`examine` as a request asks for it, of whichever kind the job is."""
    base = Path(request.base) if request.base else None
    job_file = Path(request.job_file)
    text = read_job_file(job_file)[1] if request.text is None else parse(request.text, job_file.name)
    text = applied(text, request.overrides)
    if is_fusing(text.values):
        return examine_fuse.resolved(text, Home(Path(request.home)))
    where: _Where = {"home": Path(request.home), "base": base, "shown_as": request.shown_as}
    if (sweep := sweep_of(text)) is None:
        return resolved(text, **where)
    members = []
    model_at = cache(partial(find_model, home=where["home"], base=base))  # the hub is asked once
    for draft in drafts(text, sweep):
        with saying_which(draft.settings):
            job = resolved(draft.text, **where, model_at=model_at)
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
    return resolved(text, home=home, base=base, shown_as=shown_as)


def resolved(
    text: JobText,
    *,
    home: Path,
    base: Path | None,
    shown_as: str,
    model_at: Callable[[str], Path | None] | None = None,
) -> ResolvedJob:
    """`examine_text` for one that is known to train; `model_at` finds models in place of `find_model`."""
    spec = validate(text)
    check_installed(spec)
    check_targets(spec.notify, Home(home).targets)
    model_path = model_at(spec.model) if model_at is not None else find_model(spec.model, home=home, base=base)
    return ResolvedJob(
        spec=spec,
        model_path=str(model_path) if model_path else None,
        data=_find_data(spec, base, shown_as),
        resume_adapter_file=_find_adapter(spec, base, shown_as),
    )


def find_model(name: str, *, home: Path, base: Path | None) -> Path | None:
    """The folder of a model, or None if it is a hub name that the hub knows but this machine has not cached.

    Raises:
        ModelRejected: neither an added model, a folder, nor a name that the hub knows.
    """
    candidate = _path("model", name)
    if base is not None and not candidate.is_absolute() and (base / candidate).is_dir():
        candidate = base / candidate
    if found := resolve(str(candidate) if candidate.is_absolute() else name, home):
        _check_model_folder(found, name)
        return found.resolve()
    if candidate.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise ModelRejected(
            f"The model `{name}` does not exist.",
            where=f"model: {name}",
            remedy="`qlora models ls` shows what is there; `qlora models add smollm2` adds a small one.",
        )
    return _find_on_hub(name)


def _check_model_folder(folder: Path, name: str) -> None:
    if missing := _missing_in(folder):
        raise ModelRejected(
            f"The model folder {folder} holds no {missing[0]}.",
            where=f"model: {name}",
            remedy="Name a folder in MLX or Hugging Face format (config.json, model*.safetensors, tokenizer).",
        )


def _missing_in(folder: Path) -> list[str]:
    return [what for what in ("config.json", "model*.safetensors") if not any(folder.glob(what))]


def _find_on_hub(name: str) -> Path | None:
    # Imported here: it takes a third of a second that most jobs need not spend.
    from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import (  # noqa: PLC0415
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        cached = Path(snapshot_download(name, local_files_only=True, allow_patterns=["*.json", "model*.safetensors"]))
        if not _missing_in(cached):
            return cached
    except LocalEntryNotFoundError:
        pass  # not cached: ask the hub whether it exists
    except HFValidationError:
        raise ModelRejected(
            f"`{name}` is neither a folder nor a possible hub name.",
            where=f"model: {name}",
            remedy="Write it as `owner/model`, or as the path of a folder.",
        ) from None
    try:
        HfApi().model_info(name, timeout=10)
    except GatedRepoError:
        raise ModelRejected(
            f"The model `{name}` is on the hub, but only for those who accepted its terms.",
            where=f"model: {name}",
            remedy="Accept them on its page of the hub, then log in here: `hf auth login`.",
        ) from None
    except RepositoryNotFoundError:
        raise ModelRejected(
            f"The model `{name}` does not exist: not on this machine and not on the hub.",
            where=f"model: {name}",
            remedy="Correct the name; a private model needs `hf auth login` first.",
        ) from None
    except Exception as error:  # noqa: BLE001  # the hub's client passes on the errors of its HTTP library of the day
        raise ModelRejected(
            f"The model `{name}` is not on this machine, and the hub cannot be asked for it ({type(error).__name__}).",
            where=f"model: {name}",
            remedy="Check the network, name a local folder, or add a model with `qlora models add`.",
        ) from None
    return None


def _find_data(spec: JobSpec, base: Path | None, shown: str) -> dict[datafiles.Split, datafiles.DataFile]:
    folder = _absolute("data", spec.data, base)
    if spec.hf_dataset is None and folder is not None and (folder.exists() or not _may_be_hub_name(spec.data)):
        return datafiles.check_folder(folder, spec)
    if folder is None and not _may_be_hub_name(spec.data):
        raise _needs_folder("data", spec.data, shown)
    if importlib.util.find_spec("datasets") is None:
        where = "hf_dataset" if spec.hf_dataset is not None else f"data: {spec.data}"
        if folder is None:
            raise _needs_folder("data", spec.data, shown)
        raise DataRejected(
            f"The data folder {folder} does not exist, and a data set of the hub needs the package `datasets`.",
            where=where,
            remedy="Correct `data`, or install the package beside qlorad: `pip install datasets`.",
        )
    return {}


def _find_adapter(spec: JobSpec, base: Path | None, shown: str) -> str | None:
    if spec.resume_adapter_file is None:
        return None
    path = _absolute("resume_adapter_file", spec.resume_adapter_file, base)
    if path is None:
        raise _needs_folder("resume_adapter_file", spec.resume_adapter_file, shown)
    if path.suffix != ".safetensors":  # other formats may hold pickles
        raise JobRejected(
            f"`resume_adapter_file` is {path.name}, which is no .safetensors file.",
            where=f"resume_adapter_file: {spec.resume_adapter_file}",
            remedy="Name a .safetensors file of an earlier run, or remove the key.",
        )
    if not path.is_file():
        raise JobRejected(
            f"The adapter file {path} does not exist.",
            where=f"resume_adapter_file: {spec.resume_adapter_file}",
            remedy="Name a .safetensors file of an earlier run, or remove the key.",
        )
    return str(path.resolve())


def _absolute(key: str, text: str, base: Path | None) -> Path | None:
    path = _path(key, text)
    if path.is_absolute():
        return path
    return (base / path).resolve() if base is not None else None


def _path(key: str, text: str) -> Path:
    """`text` as a path, whether something is there or not.

    Raises:
        JobRejected: nothing can be there: a NUL, a user who does not exist, a name that is too long.
    """
    try:
        path = Path(text).expanduser()
        path.lstat()
    except (ValueError, RuntimeError) as error:
        why = str(error)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            return path
        why = "it is too long"
    else:
        return path
    shown = ascii(text[:80])
    raise JobRejected(
        f"`{key}` is {shown}, which cannot be a path: {why}.", where=f"{key}: {shown}", remedy="Correct it."
    )


def _may_be_hub_name(text: str) -> bool:
    return text.count("/") == 1 and not text.startswith((".", "/", "~"))


def _needs_folder(key: str, value: str, shown: str) -> DataRejected:
    return DataRejected(
        f"`{key}: {value}` is relative, and a job file dropped alone has no folder for it to start from.",
        where=f"{key}: {value}",
        remedy=f"Drop a folder that holds the job file as job.yaml and its data, write an absolute path, "
        f"or submit it from where it lies: qlora submit {shown}",
    )


def answer_requests(verdict_on: Callable[[ExamineRequest], Verdict]) -> int:
    """Read a request a line, print its verdict; 0 in any case, since a rejection is an answer."""
    for line in sys.stdin.buffer:
        verdict = verdict_on(read_line(ExamineRequest, line))
        sys.stdout.write(as_line(verdict))
        sys.stdout.flush()
    return 0


def as_line(message: ExamineRequest | Verdict) -> str:
    """A message as one line of ASCII. A file name that is not UTF-8 survives it, which pydantic's own JSON refuses."""
    return json.dumps(message.model_dump()) + "\n"


def read_line(kind: type[M], line: bytes) -> M:
    """A message from its line. Raises `ValueError` if it is none."""
    return kind.model_validate(json.loads(line))


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
