"""Puts a model folder in its place, so that a model is there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from qlora_engine.job import durable, lock
from qlora_engine.job.disposal import set_aside
from qlora_engine.job.errors import ModelNotAdded, ModelNotPermitted
from qlora_engine.job.folder import Home
from qlora_engine.job.models import check_name, models_dir

_ADDING = ".adding-"  # a model that is being made
_OLD = ".old-"  # a model that is being replaced
_LOCK = ".lock"


@contextlib.contextmanager
def adding(home: Path, name: str, *, replace: bool = False) -> Iterator[Path]:
    """An empty folder beside the models to work in; it is gone afterwards, whatever happens.

    One process at a time adds models to a home, so what it finds of others is left over from a crash.

    Raises:
        ModelNotAdded: a model of that name exists and `replace` is false, another process adds a model, or
            the disk is full (also when that shows while the caller writes).
        ModelNotPermitted: the folder may not be written.
        BadSetting: the name is no name for a model.
    """
    folder = models_dir(home)
    place = folder / check_name(name)
    work = folder / f"{_ADDING}{name}"
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, {"adds": name}):
            _check_free(place, replace)
            work.mkdir()
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _alone(folder: Path, does: Mapping[str, object]) -> Iterator[None]:
    """Hold the lock of the models, with what a crash left of them put right."""
    try:
        held = lock.acquire(folder / _LOCK, {"pid": os.getpid(), **does})
    except lock.LockHeld as error:
        raise ModelNotAdded(
            f"Another process is adding a model (process {error.holder.get('pid', 'unknown')}).",
            where=str(folder),
            remedy="Wait until it has ended, then try again.",
        ) from None
    with held:
        _tidy(folder)
        yield


def publish(model: Path, home: Path, name: str, *, replace: bool = False) -> Path:
    """Move a finished folder to its place, and make that durable. Call it within `adding`.

    Returns:
        The model's place.

    Raises:
        ModelNotAdded: a model of that name exists and `replace` is false.
        OSError: the move failed; the old model is then in its place.
    """
    place = models_dir(home) / check_name(name)
    _check_free(place, replace)
    durable.sync_contents(model)
    old = place.with_name(f"{_OLD}{name}")
    if place.exists():
        place.rename(old)  # a crash from here on is mended by _tidy
    try:
        durable.move(model, place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return place


def take_out(home: Home, names: Iterable[str]) -> None:
    """Give models a name that nothing looks for, under which they can be deleted; those that are not there are skipped.

    Raises:
        ModelNotAdded: another process adds a model just now.
        ModelNotPermitted: the folder may not be written.
    """
    folder = home.models
    with _explained(folder), _alone(folder, {"removes": True}):
        for name in names:
            set_aside(folder / check_name(name))
        durable.sync_folder(folder)


def check_space(folder: Path, need: int) -> None:
    """Refuse to begin what cannot end.

    Args:
        folder: any folder on the disk in question.
        need: bytes.

    Raises:
        ModelNotAdded: fewer are free.
    """
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ModelNotAdded(
            f"The disk has {free / 1e6:,.0f} MB free, but adding this model takes {need / 1e6:,.0f} MB.",
            where=str(folder),
            remedy="Free some space, or set QLORAD_HOME to a folder on another disk.",
        )


def _check_free(place: Path, replace: bool) -> None:
    if place.exists() and not replace:
        raise ModelNotAdded(
            f"A model named {place.name} exists.",
            where=str(place),
            remedy="Give another --name, or --replace to put the new one in its place.",
        )


def _tidy(folder: Path) -> None:
    """Remove what a crash left of an unfinished model; put back a model whose replacement was cut short."""
    for entry in folder.glob(f"{_OLD}*"):
        place = folder / entry.name.removeprefix(_OLD)
        if place.exists():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.rename(place)
    for entry in folder.glob(f"{_ADDING}*"):
        shutil.rmtree(entry, ignore_errors=True)


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Errors of the system as errors that a person can mend."""
    try:
        yield
    except OSError as error:
        where = str(error.filename or folder)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ModelNotPermitted(
                f"The models' folder may not be written: {error.strerror}.",
                where=where,
                remedy="Make it writable for you, or set QLORAD_HOME to a folder of yours.",
            ) from error
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise ModelNotAdded(
            "The disk is full." if full else f"The model cannot be written: {error.strerror or error}.",
            where=where,
            remedy="Free some space, or set QLORAD_HOME to a folder on another disk.",
        ) from error
