"""Checkpoints: a folder that is complete or absent, and says by hashes whether it is whole."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from qlora_engine.job import durable
from qlora_engine.job.errors import CheckpointDamaged
from qlora_engine.job.formats import NewerFormat
from qlora_engine.job.unforeseen import said_by
from qlora_engine.training import tensor_file

FORMAT = 2
ARRAYS, STATE, MANIFEST = "state.safetensors", "trainer.json", "manifest.json"
KEEP = 3
REPLACED = f"{durable.TEMPORARY}replaced-"  # what the name of a checkpoint begins with while another takes its place


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    step: int


def save(folder: Path, step: int, arrays: tensor_file.Arrays, trainer: Mapping[str, Any]) -> Checkpoint:
    """Write a checkpoint. It appears under its name only when all of it is on the disk. Touches nothing of MLX.

    Args:
        folder: the run's `checkpoints/`.
        step: micro-batches done; names the checkpoint.
        arrays: adapters and optimizer state, by flat names.
        trainer: position, counters and hashes, as JSON.

    Raises:
        OSError: the disk is full or read-only; the earlier checkpoints stand.
    """
    target = folder_of(folder, step)
    temporary = folder / f"{durable.TEMPORARY}{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        sha256 = tensor_file.write(temporary / ARRAYS, arrays)
        durable.write_json(temporary / STATE, {"format": FORMAT, "step": step, **trainer})
        size = (temporary / ARRAYS).stat().st_size
        files = {ARRAYS: {"bytes": size, "sha256": sha256}, STATE: _describe(temporary / STATE)}
        durable.write_json(temporary / MANIFEST, _manifest(step, files))
        durable.sync_folder(temporary)
        replaced = folder / f"{REPLACED}{target.name}"
        if target.exists():  # damaged and passed over, or saved again after a validation
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)
        durable.move(temporary, target)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Checkpoint(target, step)


def folder_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies, if there is one."""
    return folder / f"step-{step:06d}"


def newest(
    folder: Path, damaged: Callable[[Path, CheckpointDamaged], None], *, at_most: int | None = None
) -> tuple[Checkpoint, dict[str, Any]] | None:
    """The newest checkpoint that is whole, with its trainer state; None when there is none.

    Args:
        damaged: called for each one that is passed over.
        at_most: the last step that counts.
    """
    for found in reversed(listed(folder)):
        if at_most is not None and found.step > at_most:
            continue
        try:
            return found, check(found.path)
        except CheckpointDamaged as error:
            damaged(found.path, error)
    return None


def listed(folder: Path) -> list[Checkpoint]:
    """Every checkpoint that has its name, whole or not, oldest first."""
    if not folder.is_dir():
        return []
    named = [(path, path.name.removeprefix("step-")) for path in folder.iterdir() if path.name.startswith("step-")]
    return sorted((Checkpoint(path, int(n)) for path, n in named if n.isdecimal()), key=lambda c: c.step)


def check(path: Path) -> dict[str, Any]:
    """The trainer state of a checkpoint whose files match its manifest.

    Raises:
        CheckpointDamaged: a file is missing, short or changed.
        NewerFormat: a newer qlorad has made it. Passing over it would be training anew what is trained already.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        _refuse_newer(path, manifest)
        files = {name: _describe(path / name) for name in (ARRAYS, STATE)}
        for name, found in files.items():
            if found != manifest["files"][name]:
                raise CheckpointDamaged(f"{name} differs from the manifest.", where=str(path))
        state = json.loads((path / STATE).read_bytes())
    except NewerFormat:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointDamaged(f"its files cannot be read: {said_by(error)}.", where=str(path)) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointDamaged("its format is another one.", where=str(path))
    if manifest != _manifest(state.get("step"), files):
        raise CheckpointDamaged(f"{MANIFEST} is not what was written.", where=str(path))
    return state


def _refuse_newer(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raise `NewerFormat` if manifest and state agree that it is; one alone is damage."""
    number = manifest["format"]
    if isinstance(number, int) and number > FORMAT and json.loads((path / STATE).read_bytes())["format"] == number:
        raise NewerFormat.of("checkpoint", f"it has format {number}, and this one reads {FORMAT}", path)


def load_arrays(path: Path) -> dict[str, mx.array]:
    """The arrays of a checkpoint that `check` found whole."""
    arrays = mx.load(str(path / ARRAYS))
    assert isinstance(arrays, dict)  # noqa: S101  # what mx.load gives for safetensors
    mx.eval(arrays)  # read now: the file may be gone when a lazy array is needed
    return arrays


def tidy(folder: Path) -> None:
    """Remove what a killed process left of checkpoints that it had not finished.

    One that was to be replaced, and was not yet, gets its name back: a rollback may have left no other.
    """
    for replaced in folder.glob(f"{REPLACED}*"):
        target = folder / replaced.name.removeprefix(REPLACED)
        if not target.exists():
            durable.move(replaced, target)
    for left in folder.glob(f"{durable.TEMPORARY}*"):
        shutil.rmtree(left, ignore_errors=True)


def prune(folder: Path, kept: Collection[int | None]) -> None:
    """Remove all but the newest three checkpoints and those at the steps in `kept`."""
    for old in listed(folder)[:-KEEP]:
        if old.step not in kept:
            remove(old)


def remove_after(folder: Path, step: int) -> None:
    """Remove the checkpoints of later steps, the newest first."""
    for found in reversed(listed(folder)):
        if found.step > step:
            remove(found)


def remove(old: Checkpoint) -> None:
    """Remove one; renamed first, so that a crash midway leaves no part of it under its name."""
    doomed = old.path.with_name(f"{durable.TEMPORARY}{old.path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    old.path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _manifest(step: int | None, files: Mapping[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, "step": step, "files": files}


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
