"""What a job file names, found: its model, its data and the adapters that it starts from."""

from __future__ import annotations

import errno
import importlib.util
from pathlib import Path

from qlora_engine.job import datafiles
from qlora_engine.job.errors import DataRejected, JobRejected, ModelRejected
from qlora_engine.job.models import resolve
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.unforeseen import said_by


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
    if not may_be_hub_name(name):
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
            f"The model `{name}` is not on this machine, and the hub cannot be asked for it: {said_by(error)}.",
            where=f"model: {name}",
            remedy="Check the network, name a local folder, or add a model with `qlora models add`.",
        ) from None
    return None


def find_data(spec: JobSpec, base: Path | None, shown: str) -> dict[datafiles.Split, datafiles.DataFile]:
    """The data files of a job, checked; none of data that the hub has.

    Args:
        spec: of the job.
        base: the folder that relative paths start from, if there is one.
        shown: what the user calls the job file, for remedies.

    Raises:
        DataRejected: there is no such data, or it cannot be trained on.
    """
    folder = _absolute("data", spec.data, base)
    if spec.hf_dataset is None and folder is not None and (folder.exists() or not may_be_hub_name(spec.data)):
        return datafiles.check_folder(folder, spec)
    if folder is None and not may_be_hub_name(spec.data):
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


def find_adapter(spec: JobSpec, base: Path | None, shown: str) -> str | None:
    """The adapters that a job starts from, if it names any. Takes what `find_data` does; raises `JobRejected`."""
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


def may_be_hub_name(text: str) -> bool:
    """Whether the hub may know a model or data by this name; otherwise it is a path."""
    return text.count("/") == 1 and not text.startswith((".", "/", "~"))


def _needs_folder(key: str, value: str, shown: str) -> DataRejected:
    return DataRejected(
        f"`{key}: {value}` is relative, and a job file dropped alone has no folder for it to start from.",
        where=f"{key}: {value}",
        remedy=f"Drop a folder that holds the job file as job.yaml and its data, write an absolute path, "
        f"or submit it from where it lies: qlora submit {shown}",
    )
